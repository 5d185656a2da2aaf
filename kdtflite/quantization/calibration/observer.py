"""What every calibration method is: an observer that sees values and then gives a range."""

from __future__ import annotations

import abc

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.errors import ConfigurationError, DataError
from kdtflite.quantization.calibration.histogram import Histogram

__all__ = ["HistogramObserver", "Observer"]

Values = NDArray[np.float32]


class Observer(abc.ABC):
    """Sees an activation batch by batch and chooses the range that its codes will span.

    Memory is bounded: no batch is kept. The same batches give the same range, on any machine.

    Args:
        symmetric: Give a range -a..a, as int16 activations and weights have it; else one that
            may end anywhere, as int8 activations do.
        bits: Bits of the codes, 2 to 16. Methods that weigh rounding against clipping use it,
            the others ignore it.

    Raises:
        ConfigurationError: `bits` is out of bounds.
    """

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        if not isinstance(bits, int) or not 2 <= bits <= 16:
            raise ConfigurationError(
                f"Expected bits to be a whole number from 2 to 16. Received: {bits!r}."
            )
        self.symmetric = symmetric
        self.bits = bits
        self.least = np.inf
        self.greatest = -np.inf

    def update(self, values: ArrayLike) -> None:
        """Takes in one batch.

        Args:
            values: Any shape, taken as float32. A batch without values changes nothing.

        Raises:
            DataError: A value is NaN or infinite as float32. Nothing of the batch is taken in.
        """
        with np.errstate(over="ignore"):
            batch = np.asarray(values, np.float32)
        if not batch.size:
            return
        low, high = float(batch.min()), float(batch.max())
        # A NaN passes through min and max; another pass over the values is spared.
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
        """Returns the range chosen for all that was seen.

        Returns:
            Its lower and upper end. It contains 0, which must have a code (TensorFlow Lite's
            8-bit specification pads with it), and does not reach beyond the values seen and 0.
            Where all values are 0 both ends are: the caller widens what its kernels refuse.

        Raises:
            DataError: Nothing was seen.
        """
        if self.greatest < self.least:
            raise DataError(
                "Expected at least one value to calibrate on. Received: none. "
                "Pass representative data that reach this tensor."
            )
        low, high = self._range()
        low = min(max(low, self.least), 0.0)
        high = max(min(high, self.greatest), 0.0)
        if self.symmetric:
            largest = max(-low, high)
            return -largest, largest
        return low, high

    @abc.abstractmethod
    def _see(self, values: Values, low: float, high: float) -> None:
        """Takes in a batch of at least one value, all finite, from `low` to `high`."""

    @abc.abstractmethod
    def _range(self) -> tuple[float, float]:
        """Returns the range, which may lack 0 or reach too far."""


class HistogramObserver(Observer):
    """An observer that keeps a histogram: of the values, or where symmetric of their sizes."""

    def __init__(self, *, symmetric: bool = False, bits: int = 8) -> None:
        super().__init__(symmetric=symmetric, bits=bits)
        self.histogram = Histogram()

    @property
    def levels(self) -> int:
        """Steps between the codes that the histogram's values can take."""
        # int8 weights use -127..127, of which sizes take 0..127.
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def _see(self, values: Values, low: float, high: float) -> None:
        self.histogram.add(np.abs(values) if self.symmetric else values)

    def _range(self) -> tuple[float, float]:
        low, high = self._ends()
        # Sizes lie above 0; what is chosen for them holds for both signs.
        return (-high, high) if self.symmetric else (low, high)

    @abc.abstractmethod
    def _ends(self) -> tuple[float, float]:
        """Returns the range of what the histogram holds."""
