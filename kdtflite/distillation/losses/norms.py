"""Euclidean norms whose gradient at zero is zero, not NaN."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["norm", "normalize"]


def norm(vectors: tf.Tensor) -> tf.Tensor:
    """Returns the length of the vectors on the last axis, which stays, with size 1."""
    squared = tf.reduce_sum(tf.square(vectors), axis=-1, keepdims=True)
    # The slope of the square root at 0 is infinite, and one tf.where would pass on NaN = 0 · inf.
    positive = squared > 0
    root = tf.sqrt(tf.where(positive, squared, tf.ones_like(squared)))
    return tf.where(positive, root, tf.zeros_like(squared))


def normalize(vectors: tf.Tensor) -> tf.Tensor:
    """Returns the vectors on the last axis with length 1; zeros stay zeros."""
    return tf.math.divide_no_nan(vectors, norm(vectors))
