"""Training on the parts of a batch as on the whole of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.configs import quantizers

__all__ = ["synchronized"]


@contextlib.contextmanager
def synchronized(model: keras.Model) -> Iterator[None]:
    """Lets `model` see, while the block runs, the whole batch whose parts the replicas hold.

    Batch normalization takes the mean and variance of the global batch (as with synchronized=True),
    and moving activation ranges its least and greatest value. Both would otherwise be each
    replica's own, and training another one than on one device.

    Args:
        model: What is trained in the block, under a tf.distribute strategy.
    """
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [(layer, layer.synchronized, layer.fused) for layer in layers]
    for layer in layers:
        # The fused kernel knows its own replica alone.
        layer.synchronized, layer.fused = True, False
    try:
        with contextlib.ExitStack() as patches:
            for kind in (quantizers.MovingAverageQuantizer, quantizers.AllValuesQuantizer):
                patches.enter_context(mock.patch.object(kind, "__call__", _of_whole_batch(kind)))
            yield
    finally:
        for layer, synchronized_before, fused in before:
            layer.synchronized, layer.fused = synchronized_before, fused


def _of_whole_batch(kind: Any) -> Any:
    quantize = kind.__call__

    def call(quantizer: Any, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        replica = tf.distribute.get_replica_context()
        if not training or replica is None or replica.num_replicas_in_sync == 1:
            return quantize(quantizer, inputs, training, weights, **kwargs)
        values = tf.stop_gradient(inputs)
        ends = tf.stack([tf.reduce_min(values), tf.reduce_max(values)])
        # The two ends of every replica move the range as the whole batch would.
        quantize(quantizer, replica.all_gather(ends[tf.newaxis], axis=0), True, weights, **kwargs)
        return quantize(quantizer, inputs, False, weights, **kwargs)

    return call
