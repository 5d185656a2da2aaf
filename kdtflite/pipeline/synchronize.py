"""Training on the parts of a batch as if on the whole batch."""

from __future__ import annotations

import contextlib

import tf_keras as keras

from kdtflite.models.keras_internals import flatten_layers, replace_attributes

__all__ = ["synchronize"]


def synchronize(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Makes batch normalization use the whole batch, not each replica's part, in the block.

    It takes the mean and variance of the global batch, as with synchronized=True. Otherwise each
    replica would have its own, and training would differ from training on one device.

    Args:
        model: What is trained in the block, under a tf.distribute strategy.
    """
    layers = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    # The fused kernel only knows its own replica.
    return replace_attributes(layers, synchronized=True, fused=False)
