"""The base of every calibration method: an observer sees values and then chooses a range."""

from __future__ import annotations

import abc

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.arguments import ChecksArguments
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.quantization.calibration.histogram import Histogram

__all__ = ["HistogramObserver", "Observer"]

Values = NDArray[np.float32]

_LEAST_NORMAL = np.finfo(np.float32).tiny


class Observer(ChecksArguments, abc.ABC):
    """Sees an activation batch by batch and chooses the range of its codes.

    Memory is bounded: no batch is kept. The same batches give the same range on any machine, in
    any order and of any size. Denormal numbers (below 1.2e-38) count as 0: some processors and
    libraries round them to it, others do not.

    Args:
        symmetric: Choose a range -a..a, as for int16 activations and weights, instead of one with
            two free limits, as for int8 activations.
        bits: Bits per code, 2 to 16. Methods that weigh rounding against clipping use it; the
            others ignore it.

    Raises:
        ConfigurationError: `bits` is out of bounds.
    """

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        if not 2 <= bits <= 16:
            raise ConfigurationError(
                f"Expected bits to be a whole number from 2 to 16. Received: {bits!r}."
            )
        self.symmetric = symmetric
        self.bits = bits
        self.least = np.inf
        self.greatest = -np.inf

    def update(self, values: ArrayLike) -> None:
        """Adds one batch.

        Args:
            values: Any shape, converted to float32. An empty batch changes nothing.

        Raises:
            DataError: A value is NaN or infinite as float32. Then no value of the batch is added.
        """
        with np.errstate(over="ignore"):
            batch = np.asarray(values, np.float32)
        if not batch.size:
            return
        # Compared by size, which gives the same where denormals compare as 0.
        batch = np.where(np.abs(batch) < _LEAST_NORMAL, np.float32(0), batch)
        low, high = float(batch.min()), float(batch.max())
        # A NaN shows in min and max, which saves another pass over the values.
        if not (np.isfinite(low) and np.isfinite(high)):
            bad = int(np.count_nonzero(~np.isfinite(batch)))
            raise DataError(
                f"Expected finite values to calibrate on. Received: NaN or infinity in {bad} of "
                f"{batch.size} values. Check the model's weights and the data's scaling."
            )
        self.least = min(self.least, low)
        self.greatest = max(self.greatest, high)
        self._see(batch, low, high)

    def range(self) -> tuple[float, float]:
        """Returns the range chosen for all values so far.

        Returns:
            Its lower and upper limit. It contains 0, which must have a code (TensorFlow Lite's
            8-bit specification pads with it), and does not reach beyond the values and 0. If all
            values are 0, both limits are 0: the caller widens a range that its kernels refuse.

        Raises:
            DataError: There were no values.
        """
        if self.greatest < self.least:
            raise DataError(
                "Expected at least one value to calibrate on. Received: none. "
                "Pass representative data that reach this tensor."
            )
        low, high = self._choose_range()
        low = min(max(low, self.least), 0.0)
        high = max(min(high, self.greatest), 0.0)
        if self.symmetric:
            largest = max(-low, high)
            return -largest, largest
        return low, high

    @abc.abstractmethod
    def _see(self, values: Values, low: float, high: float) -> None:
        """Adds a batch of at least one value, all finite, from `low` to `high`."""

    @abc.abstractmethod
    def _choose_range(self) -> tuple[float, float]:
        """Returns the range, which may lack 0 or reach beyond the values."""


class HistogramObserver(Observer):
    """An observer with a histogram of the values, or of their sizes if symmetric."""

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        self.histogram = Histogram()

    @property
    def levels(self) -> int:
        """The number of steps between the codes of the histogram's values."""
        # int8 weights use -127..127, so their sizes use 0..127.
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def _see(self, values: Values, low: float, high: float) -> None:
        self.histogram.add(np.abs(values) if self.symmetric else values)

    def _choose_range(self) -> tuple[float, float]:
        low, high = self._choose_limits()
        # The limit chosen for the sizes applies to both signs.
        return (-high, high) if self.symmetric else (low, high)

    @abc.abstractmethod
    def _choose_limits(self) -> tuple[float, float]:
        """Returns the range chosen for the values in the histogram."""
