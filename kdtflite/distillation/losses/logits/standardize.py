"""Deviations from the mean, scaled to length 1, for correlations and z-scores."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["unit_deviations"]


def unit_deviations(
    values: tf.Tensor, axis: int, counted: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the deviations from the mean along `axis`, scaled to a Euclidean norm of 1.

    Args:
        values: Finite, float64.
        axis: The axis along which they vary.
        counted: Which values count, bool, broadcastable; None for all. Others deviate by 0.

    Returns:
        The deviations, and whether there are any, with a size of 1 along `axis`. Where the
        values differ by rounding alone, the deviations are zeros and have no gradient.
    """
    counts = tf.ones_like(values)
    if counted is not None:
        counts *= tf.cast(counted, values.dtype)
    number = tf.maximum(tf.reduce_sum(counts, axis, keepdims=True), 1.0)
    mean = tf.reduce_sum(values * counts, axis, keepdims=True) / number
    deviations = (values - mean) * counts
    # Scaled before squaring, since squares underflow. The length is 1 whatever the scale, so the
    # gradient stays exact with the scale as a constant.
    size = tf.stop_gradient(tf.reduce_max(tf.abs(deviations), axis, keepdims=True))
    varies = size > 1e-13 * tf.reduce_max(tf.abs(values * counts), axis, keepdims=True)
    scaled = tf.where(
        varies, deviations / tf.where(varies, size, tf.ones_like(size)), tf.zeros_like(deviations)
    )
    squares = tf.reduce_sum(scaled**2, axis, keepdims=True)
    # A norm of zero has no gradient: never take its root.
    return scaled / tf.sqrt(tf.where(varies, squares, tf.ones_like(squares))), varies
