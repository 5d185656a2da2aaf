"""Scopes in which the layers of a user's model can be made again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import tf_keras as keras

from kdtflite.models.keras_internals import flatten_layers

__all__ = ["use_custom_layers", "use_float32"]


@contextlib.contextmanager
def use_float32() -> Iterator[None]:
    """Makes layers that are created in the block float32, whatever the user's global policy."""
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(policy)


def use_custom_layers(model: keras.Model) -> AbstractContextManager[Any]:
    """Returns a scope in which the user's own kinds of layers in `model` can be cloned."""
    kinds = {type(layer) for layer in flatten_layers(model)}
    return keras.utils.custom_object_scope(
        {kind.__name__: kind for kind in kinds if not kind.__module__.startswith("tf_keras.")}
    )
