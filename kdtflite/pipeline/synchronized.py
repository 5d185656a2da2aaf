"""Training on the parts of a batch as on the whole of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tf_keras as keras

__all__ = ["synchronized"]


@contextlib.contextmanager
def synchronized(model: keras.Model) -> Iterator[None]:
    """Lets `model` see, while the block runs, the whole batch whose parts the replicas hold.

    Batch normalization takes the mean and variance of the global batch, as with synchronized=True;
    they would otherwise be each replica's own, and training another one than on one device.

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
        yield
    finally:
        for layer, synchronized_before, fused in before:
            layer.synchronized, layer.fused = synchronized_before, fused
