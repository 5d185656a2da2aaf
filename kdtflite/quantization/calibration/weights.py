"""Ranges of weights: symmetric, one per channel or one in all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.errors import ConfigurationError, DataError, choose

__all__ = ["weight_range"]

# The shares of the largest size that are tried: 0.05, 0.1, ..., 1, then finer ones around the best.
_SHARES = 20
_BETWEEN = np.array([-0.8, -0.6, -0.4, -0.2, 0.2, 0.4, 0.6, 0.8])
_ROUNDS = 3


def weight_range(
    values: ArrayLike,
    axis: int | Sequence[int] | None,
    method: str = "min_max",
    *,
    bits: int = 8,
) -> NDArray[np.float32]:
    """Returns the limit a of each channel's range -a..a, whose codes are ±(2^(bits-1) - 1).

    Args:
        values: A kernel of any shape, converted to float32.
        axis: The axis of the channels: -1 for the kernels of Conv2D and Dense, -2 for
            Conv2DTranspose, (-2, -1) for DepthwiseConv2D. None means one range in all.
        method: "min_max", the largest size, or "mse", the limit with the least squared error of
            rounding and clipping, found by trying shares of the largest size.
        bits: Bits per code, 2 to 16.

    Returns:
        The limits, in the shape of the channels' axes, or () for one in all; 0 for a channel of
        zeros.

    Raises:
        ConfigurationError: There is no such method or axis, or `bits` is out of bounds.
        DataError: The kernel is empty, or a value is NaN or infinite.
    """
    find = _METHODS[choose(method, _METHODS, what="calibration of weights")]
    if not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ConfigurationError(
            f"Expected bits to be a whole number from 2 to 16. Received: {bits!r}."
        )
    kernel = np.asarray(values, np.float32)
    axes = () if axis is None else tuple(np.atleast_1d(axis).tolist())
    if any(not -kernel.ndim <= one < kernel.ndim for one in axes) or len(axes) > len(
        {one % kernel.ndim for one in axes}
    ):
        raise ConfigurationError(
            f"Expected axis to name axes of a kernel of shape {kernel.shape}. Received: {axis!r}."
        )
    if not kernel.size:
        raise DataError(f"Expected weights. Received: an empty array of shape {kernel.shape}.")
    if not np.isfinite(kernel).all():
        raise DataError(
            f"Expected finite weights. Received: NaN or infinity in "
            f"{int(np.count_nonzero(~np.isfinite(kernel)))} of {kernel.size}."
        )
    moved = np.moveaxis(kernel, axes, range(len(axes)))
    shape = moved.shape[: len(axes)]
    sizes = np.abs(moved).reshape(int(np.prod(shape)), -1)
    return find(sizes, 2 ** (bits - 1) - 1).reshape(shape)


def _choose_min_max(sizes: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    return np.asarray(sizes.max(axis=1))


def _choose_mse(sizes: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    largest = sizes.max(axis=1)
    # As shares of the largest, so that no square overflows float32.
    sizes = (sizes / np.where(largest > 0, largest, 1)[:, None]).astype(np.float32, copy=False)
    share = np.ones(len(sizes))
    least = _sum_squared_errors(sizes, share, levels)
    offsets, spacing = -np.arange(1, _SHARES) / _SHARES, 1 / _SHARES
    for _ in range(_ROUNDS):
        for tried in share + offsets[:, None]:
            tried = np.clip(tried, 1e-3, 1.0)
            errors = _sum_squared_errors(sizes, tried, levels)
            # Only what is better: among equal errors the widest range wins.
            share, least = np.where(errors < least, (tried, errors), (share, least))
        offsets, spacing = spacing * _BETWEEN, spacing / len(_BETWEEN)
    return (largest * share).astype(np.float32)


def _sum_squared_errors(
    sizes: NDArray[np.float32], ends: NDArray[Any], levels: int
) -> NDArray[np.float64]:
    """Returns each channel's sum of (|w| - Q(|w|))² on the grid that ends at `ends`."""
    # An exact half has the same error in both directions, so NumPy's rounding is good enough.
    step = (ends / levels).astype(np.float32)[:, None]
    codes = np.minimum(np.rint(sizes / step), levels)
    return np.sum(np.square(sizes - codes * step), axis=1, dtype=np.float64)


_METHODS: dict[str, Callable[[NDArray[np.float32], int], NDArray[np.float32]]] = {
    "min_max": _choose_min_max,
    "mse": _choose_mse,
}
