"""Keras 3 models without a graph of built-in layers, traced to one."""

from __future__ import annotations

from typing import Any

import keras as keras3

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.graphs import map_structure
from kdtflite.models.keras3_graph import input_structure, kind_of_model
from kdtflite.models.parity import feeding_indices
from kdtflite.models.tracing import must_be_traced, trace

__all__ = ["traced_keras3"]


def traced_keras3(model: Any) -> Any:
    """Returns a Keras 3 model itself if its graph is seen whole, else the graph of its call().

    Raises:
        UnsupportedModelError: The model is not built, or cannot be traced.
    """
    kind = kind_of_model(model)
    if not model.built or (kind == "sequential" and not model.inputs):
        raise UnsupportedModelError(
            f"The Keras 3 model {model.name!r} has no input shape yet, so it has no "
            "weights. Call model.build((None, ...)) or start it with keras.Input(...)."
        )
    if not must_be_traced(model):
        return model
    if kind != "subclassed":
        return trace(model, map_structure(_like, input_structure(model)))
    shapes = _shapes(model)
    traced = trace(model, _inputs(shapes, set()))
    # Keras 3 keeps the shapes that a model was built with, but no dtypes.
    indices = {tensor._keras_history.operation.name for tensor in feeding_indices(traced)}
    return trace(model, _inputs(shapes, indices)) if indices else traced


def _like(tensor: Any) -> Any:
    name = tensor._keras_history.operation.name
    return keras3.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)


def _shapes(model: Any) -> Any:
    """Returns the shapes that a subclassed model was built with, in its inputs' structure."""
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if not shapes or shapes[0] is None:
        raise UnsupportedModelError(
            f"Keras 3 does not know the input shape of the model {model.name!r}: it could not "
            "follow its call() with symbolic inputs either. Write call() without Python branches, "
            "loops or NumPy functions on values; or build the model with the functional API, "
            "keras.Model(inputs, outputs)."
        )
    if len(shapes) > 1:
        raise UnsupportedModelError(
            f"The call() of the Keras 3 model {model.name!r} takes {len(shapes)} inputs side by "
            "side. Let it take one: a tensor, or a list or dict of tensors."
        )
    return shapes[0]


def _inputs(shapes: Any, indices: set[str], name: str = "input") -> Any:
    """Makes an input for each shape, named by its key or place."""
    if isinstance(shapes, dict):
        return {key: _inputs(value, indices, str(key)) for key, value in shapes.items()}
    if not all(size is None or isinstance(size, int) for size in shapes):
        return [_inputs(value, indices, f"{name}_{place}") for place, value in enumerate(shapes, 1)]
    dtype = "int32" if name in indices else "float32"
    return keras3.Input(tuple(shapes[1:]), dtype=dtype, name=name)
