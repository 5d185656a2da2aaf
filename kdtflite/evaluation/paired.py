"""Whether one model is more accurate than another, judged on the same samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.errors import DataError

__all__ = ["PairedDifference", "compare_paired"]

_DRAWS = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two accuracies that were measured on the same samples.

    Attributes:
        difference: The first accuracy less the second.
        standard_error: Of the difference; infinite for a single sample.
        low: Lower end of its 95 % interval.
        high: Upper end.
        samples: Number of samples.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    samples: int

    @property
    def is_noise(self) -> bool:
        """Whether the difference is within one standard error."""
        # One sample apart is one standard error exactly, which rounding must not decide.
        return abs(self.difference) <= self.standard_error * (1 + 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; an infinite standard error is None."""
        error = self.standard_error
        return {
            "difference": self.difference,
            "standard_error": error if math.isfinite(error) else None,
            "low": self.low,
            "high": self.high,
            "samples": self.samples,
        }


def compare_paired(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """Compares two models by which of the same samples each classifies correctly.

    Only samples that one model has right and the other wrong tell the two apart, so the error of
    the difference is smaller than that of two accuracies from different samples:

        standard error = sd(first - second) / √n

    The interval is that of a paired bootstrap (Efron, 1979): 2.5 and 97.5 % of the differences
    in 10,000 draws of samples, always the same draws.

    Args:
        first: Whether the first model is right, shape (samples,), bool.
        second: The same of the second model.

    Returns:
        The difference, its standard error and its 95 % interval.

    Raises:
        DataError: No samples, or different numbers of them.

    Example:
        >>> import numpy
        >>> right, wrong = numpy.array([1, 1, 1, 1], bool), numpy.array([1, 1, 1, 0], bool)
        >>> compare_paired(right, wrong).difference
        0.25
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise DataError(
            "Expected one value per sample from both models, on the same samples. Received: shapes "
            f"{first.shape} and {second.shape}."
        )
    apart = first.astype(np.int64) - second.astype(np.int64)
    samples, difference = len(apart), float(apart.mean())
    if samples == 1:
        return PairedDifference(difference, math.inf, -1.0, 1.0, samples)
    error = float(apart.std(ddof=1)) / math.sqrt(samples)
    # Drawing n samples with replacement is drawing how many of them are -1, 0 and 1.
    shares = np.bincount(apart + 1, minlength=3) / samples
    draws = np.random.default_rng(0).multinomial(samples, shares, size=_DRAWS)
    low, high = np.quantile((draws[:, 2] - draws[:, 0]) / samples, (0.025, 0.975))
    return PairedDifference(difference, error, float(low), float(high), samples)
