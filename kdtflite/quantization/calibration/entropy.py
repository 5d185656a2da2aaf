"""The range of least relative entropy, as in TensorRT's calibrator (Migacz, GTC 2017)."""

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
    """The range whose clipped and rounded distribution is closest to that of the values.

        least over ranges of  KL(P || Q) = Σ P · log(P / Q)

    P is the histogram within the range, with the values outside added to its outermost bins. Q is
    the same without the values outside, merged into as many groups of bins as there are codes;
    the count of each group is spread evenly over those of its bins that are not empty. Both sum
    to 1. TensorRT's calibrator does the same for the sizes |x| (S. Migacz, "8-bit Inference with
    TensorRT", GTC 2017): up to 2,048 bins, 2^(bits-1) groups, ranges of at least as many bins,
    zeros left out. That is the symmetric case here. Otherwise there are 2^bits groups, and the
    two limits are searched in turn until neither moves. Among equal divergences the widest range
    wins.

    The values outside go to the outermost bins that are not empty. TensorRT's calibrator takes the
    very last bins, so its range cannot stop in the gap before an outlier. No range is narrower
    than an eighth of the range of the values (a sixteenth if symmetric): for outliers beyond that
    use `percentile`.

    Args:
        symmetric: As for every observer.
        bits: 2 to 8. At 16 there are more codes than bins, so nothing can be compared.

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

    def _choose_limits(self) -> tuple[float, float]:
        counts, first, width = self.histogram.coarsen(_BINS)
        groups = self.levels + 1
        zero, end = -first, len(counts)
        low, high = 0, end
        # The divergence jitters from bin to bin: for two limits every eighth bin is enough.
        stride = _STRIDE if 0 < zero < end else 1
        for _ in range(_ROUNDS if end > groups else 0):
            before = low, high
            # Widest first, since min() keeps the first of equals.
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
        groups: The number of groups into which the range's bins are merged.

    Returns:
        The divergence in nats, or infinity for a range without values.
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
