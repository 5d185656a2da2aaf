"""The graph, the layers and the weights of a model of either Keras."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from kdtflite.models.keras_internals import flatten_layers, list_nodes

__all__ = [
    "accepts_training",
    "count_layers",
    "describe",
    "describe_weight",
    "expand_ellipsis",
    "flatten_structure",
    "get_keras",
    "is_graph",
    "is_opened",
    "list_own_weights",
    "list_weights",
    "map_structure",
    "walk_nodes",
]

# The layers of these packages stay whole: they are known, or wrap others on purpose.
_KNOWN_PACKAGES = frozenset({"keras", "kdtflite", "tensorflow_model_optimization", "tf_keras"})


def is_graph(model: Any) -> bool:
    """Says whether Keras itself runs a model from its graph: Sequential and Functional ones."""
    kinds = {
        base.__name__ for base in type(model).__mro__ if _get_package(base) in ("keras", "tf_keras")
    }
    return bool(kinds & {"Functional", "Sequential"}) and not _is_opaque(model)


def is_opened(layer: Any) -> bool:
    """Says whether tracing follows the calls of a layer inside a model into its call()."""
    if is_graph(layer):
        return any(is_opened(inner) for inner in flatten_layers(layer))
    if not _is_opaque(layer) or list_own_weights(layer):
        return False
    # A tf_keras graph may keep a user's own plain layer; a Keras 3 one could not be rebuilt.
    return bool(flatten_layers(layer)) or get_keras(layer).__name__ == "keras"


def _is_opaque(layer: Any) -> bool:
    """Says whether the layer's call() is the user's own Python code."""
    return _get_package(type(layer).call) not in _KNOWN_PACKAGES


def get_keras(layer: Any) -> Any:
    """Returns the package that a layer comes from: `keras` (Keras 3) or `tf_keras`."""
    if any(_get_package(base) == "keras" for base in type(layer).__mro__):
        import keras as keras3

        return keras3
    import tf_keras as keras

    return keras


def _get_package(obj: Any) -> str:
    return str(getattr(obj, "__module__", "")).split(".")[0]


def count_layers(model: Any) -> int:
    """Counts the layers of a model without its inputs, and those of the models inside it."""
    return sum(
        count_layers(layer) if hasattr(layer, "layers") else 1
        for layer in model.layers
        if type(layer).__name__ != "InputLayer"
    )


def list_weights(layer: Any) -> list[Any]:
    """Returns a layer's weights without the counters of its metrics."""
    counters = {id(weight) for metric in layer.metrics for weight in metric.variables}
    return [weight for weight in layer.weights if id(weight) not in counters]


def list_own_weights(layer: Any) -> list[Any]:
    """Returns the weights that belong to a layer itself, not to one inside it."""
    inner = {id(weight) for one in flatten_layers(layer) for weight in one.weights}
    return [weight for weight in list_weights(layer) if id(weight) not in inner]


def walk_nodes(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yields (layer or operation, input tensors) of a graph's nodes, inputs first."""
    for node in list_nodes(model):
        if hasattr(node, "keras_inputs"):
            yield node.layer, node.keras_inputs
        else:
            yield node.operation, node.input_tensors


def accepts_training(layer: Any) -> bool:
    """Says whether a layer's call() has an argument `training`."""
    return "training" in inspect.signature(layer.call).parameters


def map_structure(function: Callable[[Any], Any], structure: Any) -> Any:
    """Maps the leaves of dicts, lists and tuples; Keras' own kinds of those become plain ones."""
    if isinstance(structure, dict):
        return {key: map_structure(function, value) for key, value in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_structure(function, value) for value in structure))
    if isinstance(structure, list | tuple):
        values = [map_structure(function, value) for value in structure]
        return tuple(values) if isinstance(structure, tuple) else values
    return function(structure)


def flatten_structure(structure: Any) -> list[Any]:
    """Returns what is in dicts, lists and tuples, in order."""
    found: list[Any] = []
    map_structure(found.append, structure)
    return found


def describe(layer: Any) -> str:
    """Returns how messages name a layer or model: its kind, name and class."""
    kind = "model" if hasattr(layer, "fit") else "layer"
    return f"the {kind} {layer.name!r} ({type(layer).__name__})"


def describe_weight(weight: Any) -> str:
    """Returns how messages name a weight."""
    return str(getattr(weight, "path", weight.name))


def expand_ellipsis(key: Any, rank: int) -> Any:
    """Returns the key of a slice with its Ellipsis, if any, replaced by whole axes."""
    keys = list(key) if isinstance(key, tuple | list) else [key]
    places = [place for place, item in enumerate(keys) if item is Ellipsis]
    if not places:
        return key
    named = sum(item is not None for item in keys) - 1
    keys[places[0] : places[0] + 1] = [slice(None)] * (rank - named)
    return tuple(keys)
