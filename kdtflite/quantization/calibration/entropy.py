"""The range of least relative entropy, as TensorRT's calibrator (Migacz, GTC 2017)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdtflite.errors import ConfigurationError
from kdtflite.quantization.calibration.observer import HistogramObserver

__all__ = ["Entropy", "divergence"]

_BINS = 2048
_STRIDE = 8
_ROUNDS = 4


class Entropy(HistogramObserver):
    """The range whose clipped and rounded distribution tells least apart from the values' own.

        least over ranges of  KL(P || Q) = Σ P · log(P / Q)

    P is the histogram within the range, what lies beyond added to its outermost bins; Q the same
    without what lies beyond, merged into as many groups of bins as there are codes, each group's
    count spread evenly over its bins that are not empty. Both sum to 1. So does TensorRT's
    calibrator on the sizes |x| (S. Migacz, "8-bit Inference with TensorRT", GTC 2017): up to
    2,048 bins, 2^(bits-1) groups, ranges from as many bins up, zeros left out. That is the
    symmetric case here; otherwise there are 2^bits groups and the two ends are searched in turn
    until neither moves. Of equal divergences the widest range counts.

    What lies beyond goes to the outermost bins that are not empty; TensorRT's takes the very
    last ones, and so can end no range in the gap before an outlier. No range is narrower than
    an eighth of the values' (a sixteenth where symmetric): farther outliers want `percentile`.

    Args:
        symmetric: As for every observer.
        bits: 2 to 8: at 16 there are more codes than bins, and nothing to choose by.

    Raises:
        ConfigurationError: `bits` is out of bounds.
    """

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        if bits > 8:
            raise ConfigurationError(
                f"Expected bits from 2 to 8 for the calibration 'entropy'. Received: {bits}. "
                "Use 'mse' or 'percentile'."
            )

    def _ends(self) -> tuple[float, float]:
        counts, first, width = self.histogram.coarse(_BINS)
        groups = self.levels + 1
        zero, end = -first, len(counts)
        low, high = 0, end
        # The divergence jitters from bin to bin: where two ends are searched, every eighth will do.
        stride = _STRIDE if 0 < zero < end else 1
        for _ in range(_ROUNDS if end > groups else 0):
            before = low, high
            # Widest first: min() keeps the first of equals.
            high = min(
                range(end, max(zero, low + groups) - 1, -stride),
                key=lambda high: divergence(counts, low, high, groups),
            )
            low = min(
                range(0, min(zero, high - groups) + 1, stride),
                key=lambda low: divergence(counts, low, high, groups),
            )
            if (low, high) == before:
                break
        return (first + low) * width, (first + high) * width


def divergence(counts: NDArray[np.int64], low: int, high: int, groups: int) -> float:
    """Returns KL(P || Q) for the range of bins from `low` up to, without it, `high`.

    Args:
        counts: The histogram.
        low: First bin of the range.
        high: Bin after its last.
        groups: Into how many groups the range's bins are merged.

    Returns:
        Infinity where the range has no value in it.
    """
    within = np.flatnonzero(counts[low:high])
    if not len(within):
        return float(np.inf)
    p = counts[low:high][within].astype(np.float64)
    group = within * groups // (high - low)
    sums = np.bincount(group, p, groups)
    q = (sums / np.maximum(np.bincount(group, minlength=groups), 1))[group]
    p[0] += counts[:low].sum()
    p[-1] += counts[high:].sum()
    return float(p @ np.log((p / p.sum()) / (q / q.sum())) / p.sum())
