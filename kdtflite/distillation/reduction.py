"""From losses of positions to one value per sample, as Keras reduces them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.replicas import sum_over_replicas
from kdtflite.errors import ShapeMismatchError

__all__ = ["average_positions", "expand_to_rank", "leave_out", "reduce_to_samples", "spread_mask"]


def leave_out(values: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """Returns `values`, zero where they do not count, scaled so that the mean is that of the rest.

    As Keras does with masked and ignored positions: those that count weigh the same wherever
    they are, so a sample with few of them weighs less. Nothing counts where none does.

    Args:
        values: Shape (batch, ...).
        counted: Bool, shape (batch, ...), with the same axes or the first of them.
    """
    counted = expand_to_rank(counted, values)
    sizes = tf.stack([tf.size(counted, tf.int64), tf.math.count_nonzero(counted)])
    every, some = tf.unstack(sum_over_replicas(tf.cast(sizes, tf.float32)))
    # Not values * counted: a padded position may hold NaN.
    return tf.where(counted, tf.math.divide_no_nan(every, some) * values, tf.zeros_like(values))


def reduce_to_samples(values: tf.Tensor, counted: Any = None, sample_weight: Any = None) -> Any:
    """Returns one weighted value per sample, shape (batch,), float32.

    Args:
        values: Shape (batch,), or (batch, ...) with a value for each position.
        counted: Which positions count, bool, shape (batch, ...); None for all. A loss that gives
            one value for all positions of a sample is not changed by it.
        sample_weight: Shape (batch,), (batch, 1) or that of the values, with an axis of 1 or
            without; or None. A single value is weighted by the mean of its positions' weights.

    Raises:
        ShapeMismatchError: Weights that do not fit the values.
    """
    values = tf.cast(values, tf.float32)
    if sample_weight is not None:
        values *= _align_weight(tf.cast(sample_weight, tf.float32), values, counted)
    if counted is not None and counted.shape.rank <= values.shape.rank:
        values = leave_out(values, counted)
    return average_positions(values)


def average_positions(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of each sample's values, shape (batch,)."""
    axes = list(range(1, values.shape.rank))
    return tf.reduce_mean(values, axis=axes) if axes else values


def expand_to_rank(rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns `rows` with axes of size 1 added up to the rank of `like`."""
    missing = like.shape.rank - rows.shape.rank
    return tf.reshape(rows, tf.concat([tf.shape(rows), [1] * missing], 0)) if missing else rows


def spread_mask(mask: Any, logits: tf.Tensor) -> tf.Tensor | None:
    """Returns a mask in the shape of the logits without the last axis."""
    if mask is None or mask.shape.rank >= logits.shape.rank:
        return None
    every = tf.ones(tf.shape(logits)[:-1], tf.bool)
    return expand_to_rank(tf.cast(mask, tf.bool), every) & every


def _align_weight(weight: tf.Tensor, values: tf.Tensor, counted: Any) -> tf.Tensor:
    """Returns weights with which the values can be multiplied."""
    given = tuple(weight.shape)
    if weight.shape.rank == 0:
        return weight
    if weight.shape.rank > 1 and weight.shape[-1] == 1 and weight.shape.rank > values.shape.rank:
        weight = tf.squeeze(weight, axis=-1)
    if values.shape.rank == 1 and weight.shape.rank > 1:
        weight = _average_positions(weight, counted)
    if weight.shape.rank > values.shape.rank or any(
        None not in (got, want) and got not in (1, want)
        for got, want in zip(weight.shape, values.shape, strict=False)
    ):
        raise ShapeMismatchError(
            "Expected a sample_weight per sample, shape (batch,), or one per position, shape "
            f"{tuple(values.shape)}. Received: {given}."
        )
    return expand_to_rank(weight, values)


def _average_positions(weight: tf.Tensor, counted: Any) -> tf.Tensor:
    """Returns the mean weight of each sample's positions that count, shape (batch,)."""
    if counted is None or not 1 < counted.shape.rank <= weight.shape.rank:
        return average_positions(weight)
    counted = tf.cast(expand_to_rank(counted, weight), tf.float32) * tf.ones_like(weight)
    axes = list(range(1, weight.shape.rank))
    return tf.math.divide_no_nan(
        tf.reduce_sum(weight * counted, axes), tf.reduce_sum(counted, axes)
    )
