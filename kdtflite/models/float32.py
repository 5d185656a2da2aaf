"""A model of another precision rebuilt in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tf_keras as keras

from kdtflite.models.as_functional import as_functional
from kdtflite.models.graphs import map_structure
from kdtflite.progress import say

__all__ = ["custom_layers", "float32_policy", "in_float32"]

_OTHER_FLOATS = frozenset({"bfloat16", "float16", "float64"})


def in_float32(model: keras.Model) -> keras.Model:
    """Returns `model` if it computes in float32, else a copy that does, with the same weights.

    Fake quantization and the converter's integer kernels know float32 only.

    Raises:
        UnsupportedModelError: The model is subclassed, not in float32, and cannot be traced.
    """
    layers = model._flatten_layers(include_self=False)
    found = _OTHER_FLOATS & {layer.compute_dtype for layer in layers}
    if not found:
        return model
    named = ", ".join(sorted(found))
    say(f"The model {model.name!r} computes in {named}; it is rebuilt in float32.")
    model = as_functional(model)
    with float32_policy(), custom_layers(model):
        rebuilt = _rebuilt(model)
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def _rebuilt(model: keras.Model) -> keras.Model:
    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model):
            return _rebuilt(layer)
        config = layer.get_config()
        if layer.compute_dtype in _OTHER_FLOATS:
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    def input_like(tensor: Any) -> Any:
        dtype = "float32" if tensor.dtype.name in _OTHER_FLOATS else tensor.dtype
        shape = tuple(tensor.shape)
        return keras.Input(shape[1:], batch_size=shape[0], dtype=dtype, name=tensor.name)

    inputs = map_structure(input_like, getattr(model, "_nested_inputs", model.inputs[0]))
    return keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)


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
