"""A histogram that widens with its values and does not depend on how they are batched."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram"]

_MOST_BINS = 8192
# 2^-126 is float32's least normal number: its inverse is still finite.
_LEAST_EXPONENT = -126


class Histogram:
    """Counts of values in bins of one width, a power of two, with an edge at 0.

    When a batch exceeds the bins, they are merged by a power of two, so no count is ever divided,
    as PyTorch's HistogramObserver does. The width of the bins follows from the smallest and the
    largest value alone, and dividing by it is exact in float32: the counts are exactly the same
    for batches in any order and of any size. The values and 0 are covered by 4,096 to 8,192 bins.

    Values have no denormals, as observers flush them.

    Zeros are counted separately: half of a ReLU's output is zeros, which no rounding changes.

    Attributes:
        width: Width of a bin; 0 as long as there are only zeros.
        first: Number of the first bin; bin n covers the values from n · width to below
            (n + 1) · width.
        counts: Number of values in each bin from `first` on, without zeros; int64.
        zeros: Number of values that are exactly 0.
        least: The smallest value.
        greatest: The largest value.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self.zeros = 0
        self.least = math.inf
        self.greatest = -math.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts `values`, which must be finite and not denormal."""
        self.least = min(self.least, float(values.min(initial=math.inf)))
        self.greatest = max(self.greatest, float(values.max(initial=-math.inf)))
        zeros = values.size - int(np.count_nonzero(values))
        self.zeros += zeros
        if zeros == values.size:
            return
        self._widen()
        # Exact, as the width is a power of two. In float64, where no quotient is denormal: in
        # float32 a small negative one would be rounded up to bin 0 by some processors.
        numbers = np.multiply(values.ravel(), 1 / self.width, dtype=np.float64)
        numbers = np.floor(numbers, out=numbers).astype(np.int32)
        added = np.bincount(numbers - np.int32(self.first), minlength=len(self.counts))
        added[-self.first] -= zeros
        self.counts += added

    def edges(self) -> NDArray[np.float64]:
        """Returns the edges of the bins, one more than bins, the outer ones cut at the values.

        If the largest value lies on an edge, its bin keeps a thousandth of its width.
        """
        edges = (self.first + np.arange(len(self.counts) + 1.0)) * self.width
        edges[0] = max(edges[0], min(self.least, edges[1] - self.width / 1000))
        edges[-1] = min(edges[-1], max(self.greatest, edges[-2] + self.width / 1000))
        return edges

    def coarsen(self, most: int) -> tuple[NDArray[np.int64], int, float]:
        """Returns the counts, first bin's number and bin width in at most `most` bins."""
        shift = 0
        while _count_bins(self.first, len(self.counts), shift) > most:
            shift += 1
        return *_merge(self.counts, self.first, shift), self.width * 2**shift

    def _widen(self) -> None:
        """Widens the bins until they cover every value and 0."""
        low, high = min(self.least, 0.0), max(self.greatest, 0.0)
        # The width is doubled until few enough bins cover the values.
        exponent = max(math.frexp(high - low)[1] - 15, _LEAST_EXPONENT)
        width = max(2.0**exponent, self.width)
        while math.floor(high / width) - math.floor(low / width) + 1 > _MOST_BINS:
            width *= 2
        if self.width:
            shift = round(math.log2(width / self.width))
            self.counts, self.first = _merge(self.counts, self.first, shift)
        self.width = width
        before = self.first - math.floor(low / width)
        after = math.floor(high / width) + 1 - self.first - len(self.counts)
        self.counts = np.pad(self.counts, (max(before, 0), max(after, 0)))
        self.first -= max(before, 0)


def _count_bins(first: int, count: int, shift: int) -> int:
    return ((first + count - 1) >> shift) - (first >> shift) + 1


def _merge(counts: NDArray[np.int64], first: int, shift: int) -> tuple[NDArray[np.int64], int]:
    """Returns the counts with 2^shift bins merged into one, and the number of the first bin."""
    first_after = first >> shift
    numbers = (first + np.arange(len(counts))) >> min(shift, 62)
    merged = np.zeros(len(counts) and numbers[-1] - numbers[0] + 1, np.int64)
    np.add.at(merged, numbers - first_after, counts)
    return merged, first_after
