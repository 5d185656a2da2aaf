"""The range of least squared error (Sung et al., arXiv 1511.06488; Banner et al., 1810.05723)."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from kdtflite.quantization.calibration.histogram import Histogram
from kdtflite.quantization.calibration.observer import HistogramObserver

__all__ = ["MSE", "squared_error"]

Array = NDArray[np.float64]

_COARSE = 96
_TRIED = 48
_HALVINGS = 8


class MSE(HistogramObserver):
    """The range with the least mean squared error of rounding and clipping.

        least over low <= 0 <= high of  E[(x - Q(x))²]

    with Q the grid of the integer kernels: 2^bits codes in equal steps, shifted so that 0 has a
    code; if symmetric, codes ±(2^(bits-1) - 1). The error is exact for values that are evenly
    spread within each bin of the histogram; zeros have no error, since every grid contains 0.

    Both limits are searched, first over all pairs of candidates by the model step² / 12 + clipping
    error, then around the best ones by the exact error. If no range is better than that of all
    values, the result is that of all values.

    Least squares against maxima for weights and activations: Sung et al., arXiv 1511.06488; in
    closed form for Gaussian and Laplace: Banner et al., arXiv 1810.05723.
    """

    def _choose_limits(self) -> tuple[float, float]:
        low, high = min(self.histogram.least, 0.0), max(self.histogram.greatest, 0.0)
        if not high > low:
            return low, high

        def measure_error(low: float, high: float) -> float:
            return squared_error(self.histogram, low, high, self.levels)

        # Among equal errors the widest range wins.
        best = (measure_error(low, high), low, high)
        for near_low, near_high in _list_candidates(self.histogram, self.levels):
            best = min(
                best, (measure_error(near_low, near_high), near_low, near_high), key=_get_error
            )
        step_low = max(best[1] - low, -best[1]) / _COARSE
        step_high = max(high - best[2], best[2]) / _COARSE
        for _ in range(_HALVINGS):
            around = best
            for i, j in itertools.product((-1, 0, 1), repeat=2):
                a = min(max(around[1] + i * step_low, low), 0.0)
                b = max(min(around[2] + j * step_high, high), 0.0)
                if b > a:
                    best = min(best, (measure_error(a, b), a, b), key=_get_error)
            if best == around:
                step_low, step_high = step_low / 2, step_high / 2
        return best[1], best[2]


def _get_error(candidate: tuple[float, float, float]) -> float:
    return candidate[0]


def squared_error(histogram: Histogram, low: float, high: float, levels: int) -> float:
    """Returns the mean squared error of rounding and clipping to a range.

    Args:
        histogram: The values, assumed to be evenly spread within each bin.
        low: Lower end, at most 0.
        high: Upper end, at least 0 and above `low`.
        levels: Number of steps between the codes, 255 for 8 bits. The grid is shifted by up to
            half a step so that 0 has a code, as in TensorFlow Lite.
    """
    step = (high - low) / levels
    below = round(-low / step)
    edges = histogram.edges()
    # The integral of (u - round(u))² from 0 to t is n/12 + (t - n)³/3 with n = round(t): each cell
    # around a code contributes 1/12. Outside the range, n stays and (t - n)² keeps growing.
    t = edges / step
    code = np.clip(np.rint(t), -below, levels - below)
    integral = code / 12 + (t - code) ** 3 / 3
    means = np.diff(integral) / np.diff(t)
    total = int(histogram.counts.sum()) + histogram.zeros
    return float(histogram.counts @ means) * step**2 / total


def _list_candidates(histogram: Histogram, levels: int) -> list[tuple[float, float]]:
    """Returns the pairs of limits with the least step² / 12 + clipping error, best first."""
    edges = histogram.edges()
    centers = (edges[1:] + edges[:-1]) / 2
    squares = centers**2 + np.diff(edges) ** 2 / 12
    counts = histogram.counts

    def sum_clipped(ends: NDArray[np.int64], side: slice) -> Array:
        """Sum of (x - end)² over the values beyond each edge on one side."""
        sums = [
            np.concatenate([[0.0], np.cumsum((counts * moment)[side])])[side]
            for moment in (np.ones_like(centers), centers, squares)
        ]
        beyond = np.maximum(sums[2] - 2 * edges * sums[1] + edges**2 * sums[0], 0.0)
        return beyond[ends]

    backward, forward = slice(None, None, -1), slice(None)
    zero = -histogram.first
    lows = zero - _spread(zero)
    highs = zero + _spread(len(counts) - zero)
    step = (edges[highs][None, :] - edges[lows][:, None]) / levels
    inside = np.concatenate([[0], np.cumsum(counts)])
    rounded = (inside[highs][None, :] - inside[lows][:, None]) * step**2 / 12
    total = rounded + sum_clipped(lows, forward)[:, None] + sum_clipped(highs, backward)[None, :]
    total[step <= 0] = np.inf
    order = np.argsort(total, axis=None, kind="stable")[:_TRIED]
    return [
        (min(float(edges[lows[i]]), 0.0), max(float(edges[highs[j]]), 0.0))
        for i, j in zip(*np.unravel_index(order, total.shape), strict=True)
        if step[i, j] > 0
    ]


def _spread(most: int) -> NDArray[np.int64]:
    """Returns distances from 0 to `most` bins: evenly spread ones, and small ones for outliers."""
    if not most:
        return np.zeros(1, np.int64)
    even = np.linspace(0, most, _COARSE)
    small = np.geomspace(1, most, _COARSE // 2)
    return np.unique(np.rint(np.concatenate([even, small])).astype(np.int64))
