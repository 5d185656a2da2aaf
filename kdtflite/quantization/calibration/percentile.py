"""Percentiles of the values (McKinstry et al., arXiv 1809.04191; Wu et al., arXiv 2004.09602)."""

from __future__ import annotations

import numpy as np

from kdtflite.errors import ConfigurationError
from kdtflite.quantization.calibration.observer import HistogramObserver

__all__ = ["Percentile"]


class Percentile(HistogramObserver):
    """The range that leaves out a given share of the values on either side.

        low = the (100 - p)th percentile, high = the pth;  symmetric: a = the pth of |x|

    The percentiles are NumPy's (linear between neighbors), computed from the histogram: they differ
    from the exact ones by at most one bin, 1/4,096 of the range of the values. 99.99 is one of the
    two values that Wu et al. (arXiv 2004.09602) recommend, after McKinstry et al.
    (arXiv 1809.04191).

    Args:
        percentile: p, above 50 and up to 100; 100 is the same as `min_max`.
        symmetric: As for every observer.
        bits: As for every observer; without effect.

    Raises:
        ConfigurationError: `percentile` is out of bounds.
    """

    def __init__(
        self, *, percentile: float = 99.99, symmetric: bool = False, bits: int = 8
    ) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        if not 50 < percentile <= 100:
            raise ConfigurationError(
                f"Expected percentile above 50, up to 100. Received: {percentile!r}."
            )
        self.percentile = percentile

    def _choose_limits(self) -> tuple[float, float]:
        return self._find_quantile(1 - self.percentile / 100), self._find_quantile(
            self.percentile / 100
        )

    def _find_quantile(self, share: float) -> float:
        total = int(self.histogram.counts.sum()) + self.histogram.zeros
        rank = share * (total - 1)
        below = int(rank)
        value = self._find_value(below, total)
        return value + (rank - below) * (self._find_value(min(below + 1, total - 1), total) - value)

    def _find_value(self, rank: int, total: int) -> float:
        """Returns the value with a rank in ascending order, counted from 0."""
        histogram = self.histogram
        if rank == 0:
            return histogram.least
        if rank == total - 1:
            return histogram.greatest
        negative = int(histogram.counts[: -histogram.first].sum()) if histogram.first < 0 else 0
        if negative <= rank < negative + histogram.zeros:
            return 0.0
        if rank >= negative:
            rank -= histogram.zeros
        upto = np.cumsum(histogram.counts)
        number = int(np.searchsorted(upto, rank, side="right"))
        count = int(histogram.counts[number])
        # The values of a bin are assumed to be evenly spread.
        within = (rank - (int(upto[number]) - count) + 0.5) / count
        low, high = histogram.edges()[number : number + 2]
        return float(low + within * (high - low))
