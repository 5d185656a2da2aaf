"""Sums over the replicas of a `tf.distribute` strategy."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["over_replicas"]


def over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Returns the sum of `value` over all replicas; `value` itself on one device."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
