"""Takes the float model out of a quantization-aware one."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.policy import use_custom_layers
from kdtflite.quantization.graph import build_like, list_calls, substitute
from kdtflite.quantization.layers import (
    FakeQuantize,
    FakeQuantized,
    FoldedBatchNormalization,
)

__all__ = ["is_quantization_aware", "strip"]


def is_quantization_aware(model: keras.Model) -> bool:
    """Whether a model has fake quantization by kdtflite."""
    return any(isinstance(layer, FakeQuantize | FakeQuantized) for layer in model.layers)


def strip(model: Any) -> keras.Model:
    """Returns a float copy of a quantization-aware model, without any rounding.

    The copy is the flat, rewritten model that `quantize_aware` made of the user's model, with the
    present weights. Its layers have their old names.

    Args:
        model: A model from `quantize_aware`. It is not changed.

    Raises:
        UnsupportedModelError: The model has no fake quantization.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense")])
        >>> student = kdtflite.quantize_aware(model)
        >>> [layer.name for layer in kdtflite.quantization.strip(student).layers][1:]
        ['dense']
    """
    model = as_tf_keras(model)
    if not is_quantization_aware(model):
        raise UnsupportedModelError(
            f"Expected a model from quantize_aware(). Received: {model.name!r}, which has no fake "
            "quantization."
        )
    clones: dict[int, Any] = {}

    def build(source: keras.Model, tensors: dict[int, Any]) -> None:
        for call in list_calls(source):
            layer = call.layer
            args, kwargs = substitute(call.args, tensors), substitute(call.kwargs, tensors)
            if isinstance(layer, FakeQuantize):
                outputs = args[0]
            else:
                inner = layer.layer if isinstance(layer, FakeQuantized) else layer
                is_new = id(layer) not in clones
                if is_new:
                    kind = type(inner)
                    if kind is FoldedBatchNormalization:
                        kind = keras.layers.BatchNormalization
                    clones[id(layer)] = kind.from_config(inner.get_config())
                outputs = clones[id(layer)](*args, **kwargs)
                if is_new and inner.weights:
                    clones[id(layer)].set_weights(inner.get_weights())
            for before, after in zip(
                tf.nest.flatten(call.outputs), tf.nest.flatten(outputs), strict=True
            ):
                tensors[id(before)] = after

    with use_custom_layers(model):
        return build_like(model, build)
