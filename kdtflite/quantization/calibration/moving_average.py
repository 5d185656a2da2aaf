"""A moving average of the range of each batch (Jacob et al., arXiv 1712.05877)."""

from __future__ import annotations

from kdtflite.errors import ConfigurationError
from kdtflite.quantization.calibration.observer import Observer, Values

__all__ = ["MovingAverage"]


class MovingAverage(Observer):
    """The exponential moving average of the limits of each batch's range.

        m_t = d · m_(t-1) + (1 - d) · limit_t,    limit = m_t / (1 - d^t)

    The division removes the effect of the start at 0 (as in Adam, Kingma & Ba, arXiv 1412.6980),
    which otherwise narrows the range for about 1 / (1 - d) batches. An outlier counts in one batch
    only. The average follows arXiv 1712.05877, section 3.1.

    Args:
        decay: d, from 0 (the last batch alone) to below 1.
        symmetric: As for every observer.
        bits: As for every observer; without effect.

    Raises:
        ConfigurationError: `decay` is out of bounds.
    """

    def __init__(self, *, decay: float = 0.99, symmetric: bool = False, bits: int = 8) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        if not 0 <= decay < 1:
            raise ConfigurationError(f"Expected decay from 0 to below 1. Received: {decay!r}.")
        self.decay = decay
        self._batches = 0
        self._low = self._high = 0.0

    def _see(self, values: Values, low: float, high: float) -> None:
        if self.symmetric:
            low, high = 0.0, max(-low, high)
        self._batches += 1
        self._low += (1 - self.decay) * (min(low, 0.0) - self._low)
        self._high += (1 - self.decay) * (max(high, 0.0) - self._high)

    def _choose_range(self) -> tuple[float, float]:
        start = 1 - self.decay**self._batches
        low, high = self._low / start, self._high / start
        return (-high, high) if self.symmetric else (low, high)
