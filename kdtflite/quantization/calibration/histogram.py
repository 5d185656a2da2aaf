"""A histogram that widens as values come, and is the same in whatever batches they come."""

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

    When a batch exceeds the bins they are merged by whole factors, 2, 4, 8, ..., so that no
    count is ever divided (as in PyTorch's HistogramObserver, which divides). The bins' width
    follows from the least and greatest value alone and dividing by it is exact in float32:
    batches in any order and of any size give the same counts, to the last one. At least 4,096
    bins span the values and 0, and at most 8,192.

    Zeros are counted apart: a ReLU's output is half zeros, which no rounding changes.

    Attributes:
        width: Width of a bin; 0 while nothing but zeros was seen.
        first: Number of the first bin; bin n spans n · width up to, without it, (n + 1) · width.
        counts: How many values lie in each bin from `first` on, zeros left out; int64.
        zeros: How many are exactly 0.
        least: Least of all values.
        greatest: Greatest of all values.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self.zeros = 0
        self.least = math.inf
        self.greatest = -math.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts `values`, which are finite."""
        self.least = min(self.least, float(values.min(initial=math.inf)))
        self.greatest = max(self.greatest, float(values.max(initial=-math.inf)))
        zeros = values.size - int(np.count_nonzero(values))
        self.zeros += zeros
        if zeros == values.size:
            return
        self._widen()
        # Exact, as the width is a power of two; so is floor, far below 2^24.
        numbers = np.floor(values.ravel() * np.float32(1 / self.width)).astype(np.int32)
        added = np.bincount(numbers - np.int32(self.first), minlength=len(self.counts))
        added[-self.first] -= zeros
        self.counts += added

    def edges(self) -> NDArray[np.float64]:
        """Returns the bins' edges, one more than bins, the outer ones no further than the values.

        Where the greatest value lies on an edge, its bin keeps a thousandth of its width.
        """
        edges = (self.first + np.arange(len(self.counts) + 1.0)) * self.width
        edges[0] = max(edges[0], min(self.least, edges[1] - self.width / 1000))
        edges[-1] = min(edges[-1], max(self.greatest, edges[-2] + self.width / 1000))
        return edges

    def coarse(self, most: int) -> tuple[NDArray[np.int64], int, float]:
        """Returns the counts, first bin's number and width with no more than `most` bins."""
        shift = 0
        while _bins(self.first, len(self.counts), shift) > most:
            shift += 1
        return *_merged(self.counts, self.first, shift), self.width * 2**shift

    def _widen(self) -> None:
        """Makes the bins span every value seen and 0."""
        low, high = min(self.least, 0.0), max(self.greatest, 0.0)
        # Where two of these bins more than suffice do not, in steps of two, until they do.
        exponent = max(math.frexp(high - low)[1] - 15, _LEAST_EXPONENT)
        width = max(2.0**exponent, self.width)
        while math.floor(high / width) - math.floor(low / width) + 1 > _MOST_BINS:
            width *= 2
        if self.width:
            shift = round(math.log2(width / self.width))
            self.counts, self.first = _merged(self.counts, self.first, shift)
        self.width = width
        before = self.first - math.floor(low / width)
        after = math.floor(high / width) + 1 - self.first - len(self.counts)
        self.counts = np.pad(self.counts, (max(before, 0), max(after, 0)))
        self.first -= max(before, 0)


def _bins(first: int, count: int, shift: int) -> int:
    return ((first + count - 1) >> shift) - (first >> shift) + 1


def _merged(counts: NDArray[np.int64], first: int, shift: int) -> tuple[NDArray[np.int64], int]:
    """Returns `counts` with 2^shift bins made one, and the number of the first."""
    first_after = first >> shift
    numbers = (first + np.arange(len(counts))) >> min(shift, 62)
    merged = np.zeros(len(counts) and numbers[-1] - numbers[0] + 1, np.int64)
    np.add.at(merged, numbers - first_after, counts)
    return merged, first_after
