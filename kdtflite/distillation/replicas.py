"""Sums over the replicas of a `tf.distribute` strategy."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["reduce_loss", "sum_over_replicas"]


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Returns the sum of `value` over all replicas; `value` itself on one device."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def reduce_loss(values: tf.Tensor, regularization: tf.Tensor | float) -> tf.Tensor:
    """Returns this replica's part of the loss that a step minimizes, a scalar.

    The parts add up over the replicas, as their gradients do. Keras would instead average the
    replicas' means, which is another number when the replicas hold different numbers of samples.

    Args:
        values: The loss of each sample on this replica, shape (batch,).
        regularization: A scalar, the same on every replica.
    """
    count = sum_over_replicas(tf.cast(tf.shape(values)[0], tf.float32))
    mean = tf.math.divide_no_nan(tf.reduce_sum(values), count)
    return mean + regularization / tf.distribute.get_strategy().num_replicas_in_sync
