"""Inputs and outputs of a .tflite file, and the package's only quantization arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["TensorSpec", "dequantize", "quantize"]

Array = NDArray[Any]


def quantize(x: ArrayLike, scale: float, zero_point: int, dtype: str) -> Array:
    """Turns real values into integer codes: q = clamp(round(x / scale) + zero_point).

    Rounds half away from zero and saturates, in float32, as LiteRT's reference QUANTIZE kernel
    does. (LiteRT's optimized kernels round exact halves to even on x86.) NaN, which has no right
    code, becomes the zero point, the code of 0.0.

    Args:
        x: Real values of any shape, taken as float32.
        scale: Step between two codes; positive.
        zero_point: The code of 0.0.
        dtype: "int8", "uint8" or "int16".

    Returns:
        Codes of `dtype`, in the shape of `x`.

    Example:
        >>> from kdtflite.lite import quantize
        >>> quantize([0.0, 0.25, 1.0, 100.0], scale=0.5, zero_point=-3, dtype="int8")
        array([ -3,  -2,  -1, 127], dtype=int8)
    """
    info = np.iinfo(dtype)
    # A tiny scale overflows to infinity, which saturates as it should.
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.asarray(x, np.float32) / np.float32(scale)
        whole = np.trunc(steps)
        # Not floor(v + 0.5): in float32 0.49999997 + 0.5 is 1.0. v - trunc(v) is exact.
        away = np.copysign(np.abs(steps - whole) >= np.float32(0.5), steps)
        rounded = np.nan_to_num(whole + away, nan=0.0, posinf=2.0**24, neginf=-(2.0**24))
    # Beyond 2²⁴ float32 skips integers, but every code of 16 bits has saturated long before.
    codes = np.clip(rounded, -(2.0**24), 2.0**24).astype(np.int32) + np.int32(zero_point)
    return np.clip(codes, info.min, info.max).astype(dtype)


def dequantize(q: Array, scale: float, zero_point: int) -> NDArray[np.float32]:
    """Turns integer codes into real values: x = (q - zero_point) * scale, in float32.

    Args:
        q: Codes of any integer dtype and shape.
        scale: Step between two codes.
        zero_point: The code of 0.0.

    Returns:
        Real values, float32, in the shape of `q`.

    Example:
        >>> import numpy as np
        >>> from kdtflite.lite import dequantize
        >>> dequantize(np.array([-3, -1, 127], np.int8), scale=0.5, zero_point=-3)
        array([ 0.,  1., 65.], dtype=float32)
    """
    return (q.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * np.float32(scale)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a .tflite file.

    Attributes:
        name: Name in the file's signature; in kdtflite's files, the name of the Keras layer.
        index: Tensor index for the interpreter.
        shape: Shape as stored; the batch is usually 1.
        shape_signature: The shape with -1 for sizes that may be changed.
        dtype: "int8", "uint8", "int16", "float32", "int32", ...
        scale: Step between two codes; None if the tensor is not quantized.
        zero_point: Code of 0.0; None if the tensor is not quantized.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """Shape of one sample; None for a size that may be changed."""
        return tuple(None if size < 0 else size for size in self.shape_signature[1:])

    @property
    def range(self) -> tuple[float, float] | None:
        """Least and greatest real value that the codes represent; None if not quantized."""
        if self.scale is None or self.zero_point is None:
            return None
        codes = np.iinfo(self.dtype)
        return (codes.min - self.zero_point) * self.scale, (
            codes.max - self.zero_point
        ) * self.scale

    def quantize(self, x: ArrayLike) -> Array:
        """Returns `x` in this tensor's dtype.

        An array of the tensor's own integer dtype holds codes and is returned unchanged. Any
        other holds real values: uint8 pixels 0..255 for an int8 input are quantized.
        """
        x = np.asarray(x)
        if str(x.dtype) == self.dtype:
            return x
        if self.scale is None or self.zero_point is None:
            return x.astype(self.dtype)
        return quantize(x, self.scale, self.zero_point, self.dtype)

    def dequantize(self, q: Array) -> Array:
        """Returns codes as float32 real values; values of an unquantized tensor are unchanged."""
        if self.scale is None or self.zero_point is None:
            return q
        return dequantize(q, self.scale, self.zero_point)

    def to_dict(self) -> dict[str, Any]:
        """Returns the specification as plain values for JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "scale": self.scale,
            "zero_point": self.zero_point,
        }
