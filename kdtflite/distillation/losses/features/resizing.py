"""Feature maps of two sizes brought to one: the only place where losses resize."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["nearest", "pooled", "to_common_size"]


def to_common_size(first: tf.Tensor, second: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both maps average-pooled, axis by axis, to the smaller of their two sizes.

    Args:
        first: Shape (batch, ..., channels): any number of spatial axes, none for vectors. Sizes
            may be unknown until the graph runs.
        second: The same number of axes; channels of its own.
    """
    for axis in range(1, first.shape.rank - 1):
        one, other = _size(first, axis), _size(second, axis)
        known = isinstance(one, int) and isinstance(other, int)
        smaller = min(one, other) if known else tf.minimum(one, other)
        first, second = pooled(first, axis, smaller), pooled(second, axis, smaller)
    return first, second


def pooled(maps: tf.Tensor, axis: int, size: Any) -> tf.Tensor:
    """Returns `maps` adaptively average-pooled along one axis.

    Cell i is the mean of the positions from ⌊i·length/size⌋ up to ⌈(i+1)·length/size⌉: plain
    average pooling where the length is a multiple of the size, cells that overlap elsewhere.

    Args:
        maps: Shape (batch, ..., channels).
        axis: The axis to pool.
        size: How many cells it has afterwards, an int or a scalar tensor.
    """
    length = _size(maps, axis)
    if isinstance(length, int) and isinstance(size, int) and length == size:
        return maps
    cell, position = tf.range(size), tf.range(length)[:, tf.newaxis]
    start, stop = cell * length // size, -(-(cell + 1) * length // size)
    inside = tf.cast((position >= start) & (position < stop), maps.dtype)
    means = tf.tensordot(maps, inside / tf.cast(stop - start, maps.dtype), [[axis], [0]])
    last = maps.shape.rank - 1
    return tf.transpose(means, [*range(axis), last, *range(axis, last)])


def nearest(maps: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns `maps` with the spatial sizes of `like`, each position the nearest one's value."""
    for axis in range(1, maps.shape.rank - 1):
        length, size = _size(maps, axis), _size(like, axis)
        maps = tf.gather(maps, tf.range(size) * length // size, axis=axis)
    return maps


def _size(maps: tf.Tensor, axis: int) -> Any:
    known = maps.shape[axis]
    return tf.shape(maps)[axis] if known is None else known
