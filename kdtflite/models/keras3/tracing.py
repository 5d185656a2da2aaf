"""Traces Keras 3 models to a graph of built-in layers."""

from __future__ import annotations

from typing import Any

import keras as keras3

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.graphs import is_graph, map_structure
from kdtflite.models.keras3.graph import get_symbolic_inputs
from kdtflite.models.parity import find_index_inputs
from kdtflite.models.tracing import needs_tracing, trace

__all__ = ["trace_keras3"]


def trace_keras3(model: Any) -> Any:
    """Returns a Keras 3 model itself if it is a whole graph, else the graph of its call().

    Raises:
        UnsupportedModelError: The model is not built, or cannot be traced.
    """
    has_graph = is_graph(model)
    if not model.built or (has_graph and not model.inputs):
        raise UnsupportedModelError(
            f"The Keras 3 model {model.name!r} has no input shape yet, so it has no "
            "weights. Call model.build((None, ...)) or start it with keras.Input(...)."
        )
    if not needs_tracing(model):
        return model
    if has_graph:
        return trace(model, map_structure(_make_input_like, get_symbolic_inputs(model)))
    shapes = _get_build_shapes(model)
    traced = trace(model, _make_inputs(shapes, set()))
    # Keras 3 keeps the shapes that a model was built with, but not the dtypes.
    indices = {tensor._keras_history.operation.name for tensor in find_index_inputs(traced)}
    return trace(model, _make_inputs(shapes, indices)) if indices else traced


def _make_input_like(tensor: Any) -> Any:
    name = tensor._keras_history.operation.name
    return keras3.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)


def _get_build_shapes(model: Any) -> Any:
    """Returns the shapes that a subclassed model was built with, in the structure of its inputs."""
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


def _make_inputs(shapes: Any, indices: set[str], name: str = "input") -> Any:
    """Makes an input for each shape, named by its key or place."""
    if isinstance(shapes, dict):
        return {key: _make_inputs(value, indices, str(key)) for key, value in shapes.items()}
    if not all(size is None or isinstance(size, int) for size in shapes):
        return [
            _make_inputs(value, indices, f"{name}_{place}") for place, value in enumerate(shapes, 1)
        ]
    dtype = "int32" if name in indices else "float32"
    return keras3.Input(tuple(shapes[1:]), dtype=dtype, name=name)
