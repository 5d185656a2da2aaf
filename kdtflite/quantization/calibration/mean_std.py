"""Mean and standard deviation of the values (Banner et al., arXiv 1810.05723)."""

from __future__ import annotations

import math

import numpy as np

from kdtflite.errors import ConfigurationError
from kdtflite.quantization.calibration.observer import Observer, Values

__all__ = ["MeanStd"]


class MeanStd(Observer):
    """A number of standard deviations on either side of the mean, not beyond the values.

        low = max(mean - k · std, min), high = min(mean + k · std, max)

    For a Gaussian, k = 3.92 has the least squared error at 8 bits (Banner et al.,
    arXiv 1810.05723, where it is 2.55 at 4 bits). A heavier tail needs more, as does the output of
    a ReLU, whose mean is not in its middle.

    Args:
        deviations: k, positive.
        symmetric: As for every observer; the limit farther from 0 applies on both sides.
        bits: As for every observer; without effect.

    Raises:
        ConfigurationError: `deviations` is not positive.
    """

    def __init__(self, *, deviations: float = 3.92, symmetric: bool = False, bits: int = 8) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        if not 0 < deviations < math.inf:
            raise ConfigurationError(
                f"Expected deviations to be a positive number. Received: {deviations!r}."
            )
        self.deviations = deviations
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def _see(self, values: Values, low: float, high: float) -> None:
        # Batches are joined as by Chan, Golub & LeVeque (1983), so that no large sums cancel.
        mean = float(np.mean(values, dtype=np.float64))
        squares = float(np.sum(np.square(np.subtract(values, mean, dtype=np.float64))))
        count = self._count + values.size
        shift = mean - self._mean
        self._squares += squares + shift**2 * self._count * values.size / count
        self._mean += shift * values.size / count
        self._count = count

    def _choose_range(self) -> tuple[float, float]:
        reach = self.deviations * math.sqrt(self._squares / self._count)
        return self._mean - reach, self._mean + reach
