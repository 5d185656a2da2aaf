"""Feature maps resized to a common size; losses resize nowhere else."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["average_pool", "resize_nearest", "to_common_size"]


def to_common_size(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both maps average-pooled, axis by axis, to the smaller of their sizes.

    Args:
        first: Shape (batch, ..., channels): any number of spatial axes, none for vectors. Sizes
            may be unknown until the graph runs.
        second: The same number of axes; any channels.
    """
    for axis in range(1, first.shape.rank - 1):
        one, other = _get_size(first, axis), _get_size(second, axis)
        known = isinstance(one, int) and isinstance(other, int)
        smaller = min(one, other) if known else tf.minimum(one, other)
        first, second = average_pool(first, axis, smaller), average_pool(second, axis, smaller)
    return first, second


def average_pool(maps: tf.Tensor, axis: int, size: Any) -> tf.Tensor:
    """Returns `maps` adaptively average-pooled along one axis.

    Cell i is the mean of the positions from ⌊i·length/size⌋ up to ⌈(i+1)·length/size⌉: plain
    average pooling where the length is a multiple of the size, overlapping cells elsewhere.

    Args:
        maps: Shape (batch, ..., channels).
        axis: The axis to pool.
        size: The number of cells, an int or a scalar tensor.
    """
    length = _get_size(maps, axis)
    if isinstance(length, int) and isinstance(size, int) and length == size:
        return maps
    cell, position = tf.range(size), tf.range(length)[:, tf.newaxis]
    start, stop = cell * length // size, -(-(cell + 1) * length // size)
    inside = tf.cast((position >= start) & (position < stop), maps.dtype)
    means = tf.tensordot(maps, inside / tf.cast(stop - start, maps.dtype), [[axis], [0]])
    last = maps.shape.rank - 1
    return tf.transpose(means, [*range(axis), last, *range(axis, last)])


def resize_nearest(maps: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns `maps` with the spatial sizes of `like`, by nearest neighbors."""
    for axis in range(1, maps.shape.rank - 1):
        length, size = _get_size(maps, axis), _get_size(like, axis)
        maps = tf.gather(maps, tf.range(size) * length // size, axis=axis)
    return maps


def _get_size(maps: tf.Tensor, axis: int) -> Any:
    known = maps.shape[axis]
    return tf.shape(maps)[axis] if known is None else known
