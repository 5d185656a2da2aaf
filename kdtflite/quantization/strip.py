"""strip: the float model inside a quantization-aware one."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.float32 import custom_layers
from kdtflite.quantization.graph import calls, model_of, substitute
from kdtflite.quantization.layers import (
    FakeQuantize,
    FakeQuantized,
    FoldedBatchNormalization,
)

__all__ = ["is_quantization_aware", "strip"]


def is_quantization_aware(model: keras.Model) -> bool:
    """Says whether a model holds kdtflite's fake quantization."""
    return any(isinstance(layer, FakeQuantize | FakeQuantized) for layer in model.layers)


def strip(model: keras.Model) -> keras.Model:
    """Returns a float copy of a quantization-aware model, without any rounding.

    It is the flat, rewritten model that `quantize_aware` made of the user's, with the weights as
    they are now; its layers have their old names.

    Args:
        model: A model from `quantize_aware`. It is not changed.

    Raises:
        UnsupportedModelError: The model holds no fake quantization of kdtflite's.
    """
    if not is_quantization_aware(model):
        raise UnsupportedModelError(
            f"Expected a model from quantize_aware(). Received: {model.name!r}, which has no fake "
            "quantization."
        )
    clones: dict[int, Any] = {}

    def build(source: keras.Model, tensors: dict[int, Any]) -> None:
        for call in calls(source):
            layer = call.layer
            args, kwargs = substitute(call.args, tensors), substitute(call.kwargs, tensors)
            if isinstance(layer, FakeQuantize):
                outputs = args[0]
            else:
                inner = layer.layer if isinstance(layer, FakeQuantized) else layer
                new = id(layer) not in clones
                if new:
                    kind = type(inner)
                    if kind is FoldedBatchNormalization:
                        kind = keras.layers.BatchNormalization
                    clones[id(layer)] = kind.from_config(inner.get_config())
                outputs = clones[id(layer)](*args, **kwargs)
                if new and inner.weights:
                    clones[id(layer)].set_weights(inner.get_weights())
            for before, after in zip(
                tf.nest.flatten(call.outputs), tf.nest.flatten(outputs), strict=True
            ):
                tensors[id(before)] = after

    with custom_layers(model):
        return model_of(model, build)
