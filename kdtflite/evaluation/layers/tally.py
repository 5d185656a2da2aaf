"""Statistics of a file's tensor against the Keras model's, collected batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.errors import DataError
from kdtflite.lite.tensors import dequantize, quantize

__all__ = ["Grid", "Tally", "Worst"]

_BINS = 4  # differences of 0, 1, 2, and of more steps
# Elements summed at once: they fit a core's cache, and NumPy's dot product does not yet use other
# threads, which on a busy machine would take ten times as long as the sum.
_PIECE = 2**13


@dataclass(frozen=True)
class Grid:
    """The values that a quantized tensor's codes stand for: (code - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: str


@dataclass(frozen=True)
class Worst:
    """Where two tensors differ by the most steps.

    Attributes:
        steps: The difference of their codes, file minus Keras.
        sample: Number of the sample, among those compared.
        index: The index in the tensor, without the batch.
        keras: The Keras model's value there.
        file: The file's.
    """

    steps: int
    sample: int
    index: tuple[int, ...]
    keras: float
    file: float


class Tally:
    """Sums over all elements of a tensor, in float64.

    Args:
        grid: What the file's codes stand for, or None for a tensor that is not quantized.
        steps: Count too by how many steps the codes differ, for which the Keras model's values
            are quantized as the file's.
    """

    def __init__(self, grid: Grid | None, *, steps: bool = False) -> None:
        self.grid = grid
        self.counts_steps = steps and grid is not None
        self.elements = 0
        self.worst: Worst | None = None
        self._signal = self._error = self._other = self._product = 0.0
        self._largest = 0.0
        self._bins = np.zeros(_BINS, np.int64)
        self._saturated = self._clipped = 0
        self._codes: tuple[int, int] | None = None

    def add(self, expected: NDArray[Any], given: NDArray[Any], *, first: int = 0) -> None:
        """Counts a batch.

        Args:
            expected: The Keras model's values, shape (batch, ...).
            given: The file's codes, or its values where it is not quantized, of the same shape.
            first: Number of the batch's first sample.

        Raises:
            DataError: A value is NaN or infinite.
        """
        if not expected.size:
            return
        values = given if self.grid is None else self._count_codes(expected, given)
        pieces = zip(_split(expected), _split(values), strict=True)
        signal = other = product = noise = 0.0
        for x, y in ((a.astype(np.float64), b.astype(np.float64)) for a, b in pieces):
            error = x - y
            signal += float(x @ x)
            other += float(y @ y)
            product += float(x @ y)
            noise += float(error @ error)
            self._largest = max(self._largest, float(np.abs(error).max()))
        if not math.isfinite(signal + other):
            whose = "the Keras model" if not math.isfinite(signal) else "the file"
            raise DataError(f"Expected finite values. Received: NaN or infinity from {whose}.")
        self.elements += expected.size
        self._signal, self._other = self._signal + signal, self._other + other
        self._product, self._error = self._product + product, self._error + noise
        if self.counts_steps:
            self._count_steps(expected, given, values, first)

    @property
    def mse(self) -> float:
        """Mean squared difference."""
        return self._error / max(self.elements, 1)

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, 10 log10(sum x² / sum (x - x̂)²), in dB.

        Infinite where there is no error, minus infinite where there is nothing but error.
        """
        if self._error == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._error) if self._signal else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two as vectors; 1 where both are 0, 0 where one is."""
        if self._signal == 0 or self._other == 0:
            return float(self._signal == self._other)
        # Rounding may exceed 1 by an ulp.
        return max(-1.0, min(1.0, self._product / math.sqrt(self._signal * self._other)))

    @property
    def largest(self) -> float:
        """Largest absolute difference of two values."""
        return self._largest

    @property
    def largest_steps(self) -> float | None:
        """The same in steps of the file's tensor."""
        return None if self.grid is None else self._largest / self.grid.scale

    @property
    def saturated(self) -> float | None:
        """Share of the codes at either end of the range."""
        return self._as_share(self._saturated)

    @property
    def clipped(self) -> float | None:
        """Share of the Keras model's values more than half a step outside the range."""
        return self._as_share(self._clipped)

    @property
    def range_used(self) -> float | None:
        """Share of the range between the smallest and the largest code that occur."""
        if self.grid is None or self._codes is None:
            return None
        ends = np.iinfo(self.grid.dtype)
        return (self._codes[1] - self._codes[0]) / (int(ends.max) - int(ends.min))

    @property
    def differing(self) -> tuple[float, ...] | None:
        """Shares of the elements that differ by 0, 1, 2 and by more steps."""
        return tuple(self._bins / max(self.elements, 1)) if self.counts_steps else None

    def _as_share(self, count: int) -> float | None:
        return None if self.grid is None else count / max(self.elements, 1)

    def _count_codes(self, expected: NDArray[Any], codes: NDArray[Any]) -> NDArray[np.float32]:
        assert self.grid is not None
        scale, zero, ends = self.grid.scale, self.grid.zero_point, np.iinfo(self.grid.dtype)
        low, high = (int(ends.min) - zero - 0.5) * scale, (int(ends.max) - zero + 0.5) * scale
        if expected.min() < low or expected.max() > high:
            self._clipped += int(np.count_nonzero((expected < low) | (expected > high)))
        least, most = int(codes.min()), int(codes.max())
        if least == ends.min or most == ends.max:
            self._saturated += int(np.count_nonzero((codes == ends.min) | (codes == ends.max)))
        before = self._codes or (least, most)
        self._codes = min(before[0], least), max(before[1], most)
        return dequantize(codes, scale, zero)

    def _count_steps(
        self, expected: NDArray[Any], codes: NDArray[Any], values: NDArray[np.float32], first: int
    ) -> None:
        assert self.grid is not None
        ours = quantize(expected, self.grid.scale, self.grid.zero_point, self.grid.dtype)
        steps = codes.astype(np.int32) - ours
        sizes = np.abs(steps)
        self._bins += np.bincount(np.minimum(sizes, _BINS - 1).ravel(), minlength=_BINS)
        place = np.unravel_index(int(sizes.argmax()), sizes.shape)
        if self.worst is None or sizes[place] > abs(self.worst.steps):
            self.worst = Worst(
                steps=int(steps[place]),
                sample=first + int(place[0]),
                index=tuple(int(i) for i in place[1:]),
                keras=float(expected[place]),
                file=float(values[place]),
            )


def _split(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = values.ravel()
    return (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
