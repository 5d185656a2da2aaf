"""A mixed-precision model rebuilt in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from kdtflite.progress import say

__all__ = ["custom_layers", "float32_policy", "in_float32"]

_HALF = frozenset({"float16", "bfloat16"})


def in_float32(model: keras.Model) -> keras.Model:
    """Returns `model` if it computes in float32, else a copy that does, with the same weights.

    Fake quantization and the converter's integer kernels know float32 only.
    """
    if not _HALF & {layer.compute_dtype for layer in model._flatten_layers(include_self=False)}:
        return model

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=clone)
        config = layer.get_config()
        if layer.compute_dtype in _HALF:
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    say(f"The model {model.name!r} is of mixed precision; it is rebuilt in float32.")
    with float32_policy(), custom_layers(model):
        rebuilt = keras.models.clone_model(model, clone_function=clone)
    rebuilt.set_weights(model.get_weights())
    return rebuilt


@contextlib.contextmanager
def float32_policy() -> Iterator[None]:
    """Makes layers that are created in the block float32, whatever the user's global policy."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)


def custom_layers(model: keras.Model) -> Any:
    """Returns a scope in which the user's own kinds of layers in `model` can be cloned."""
    kinds = {type(layer) for layer in model._flatten_layers(include_self=False)}
    return keras.utils.custom_object_scope(
        {kind.__name__: kind for kind in kinds if not kind.__module__.startswith("tf_keras.")}
    )
