"""What a model of either Keras is made of: its graph, its layers and their weights."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

__all__ = [
    "described",
    "inner_layers",
    "is_graph",
    "keras_of",
    "leaves",
    "map_structure",
    "nodes",
    "number_of_layers",
    "opens",
    "own_weights",
    "restored_nodes",
    "takes_training",
    "weight_name",
    "weights_of",
    "written_out",
]

# Whose layers stay whole: they are known, or wrap others on purpose.
_KNOWN_PACKAGES = frozenset({"keras", "kdtflite", "tensorflow_model_optimization", "tf_keras"})


def is_graph(model: Any) -> bool:
    """Says whether Keras itself runs a model from its graph: Sequential and Functional ones."""
    kinds = {
        base.__name__ for base in type(model).__mro__ if _package(base) in ("keras", "tf_keras")
    }
    return bool(kinds & {"Functional", "Sequential"}) and not _is_opaque(model)


def _is_opaque(layer: Any) -> bool:
    """Says whether the layer's call() is the user's own Python code."""
    return _package(type(layer).call) not in _KNOWN_PACKAGES


def opens(layer: Any) -> bool:
    """Says whether calls of a layer inside a model are followed into its call()."""
    if is_graph(layer):
        return any(opens(inner) for inner in inner_layers(layer))
    if not _is_opaque(layer) or own_weights(layer):
        return False
    # A plain layer of one's own may stay in a tf_keras graph; nothing rebuilds a Keras 3 one.
    return bool(inner_layers(layer)) or keras_of(layer).__name__ == "keras"


def inner_layers(layer: Any) -> list[Any]:
    """Returns the layers inside a layer or model, at every depth."""
    return list(layer._flatten_layers(include_self=False))


def number_of_layers(model: Any) -> int:
    """Counts the layers of a model, those of models inside it too, its inputs left out."""
    return sum(
        number_of_layers(layer) if hasattr(layer, "layers") else 1
        for layer in model.layers
        if type(layer).__name__ != "InputLayer"
    )


def weights_of(layer: Any) -> list[Any]:
    """Returns a layer's weights without the counters of its metrics."""
    counters = {id(weight) for metric in layer.metrics for weight in metric.variables}
    return [weight for weight in layer.weights if id(weight) not in counters]


def own_weights(layer: Any) -> list[Any]:
    """Returns the weights that belong to a layer itself, not to one inside it."""
    inner = {id(weight) for one in inner_layers(layer) for weight in one.weights}
    return [weight for weight in weights_of(layer) if id(weight) not in inner]


def nodes(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yields (layer or operation, input tensors) of a graph's nodes, inputs first."""
    graph = getattr(model, "_functional", None) or model
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if hasattr(node, "keras_inputs"):
                yield node.layer, node.keras_inputs
            else:
                yield node.operation, node.input_tensors


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


def takes_training(layer: Any) -> bool:
    """Says whether a layer's call() is told whether it trains."""
    return "training" in inspect.signature(layer.call).parameters


def keras_of(layer: Any) -> Any:
    """Returns the package that a layer comes from: `keras` (Keras 3) or `tf_keras`."""
    if any(_package(base) == "keras" for base in type(layer).__mro__):
        import keras as keras3

        return keras3
    import tf_keras as keras

    return keras


def _package(obj: Any) -> str:
    return str(getattr(obj, "__module__", "")).split(".")[0]


def leaves(structure: Any) -> list[Any]:
    """Returns what is in dicts, lists and tuples, in order."""
    found: list[Any] = []
    map_structure(found.append, structure)
    return found


def weight_name(weight: Any) -> str:
    """Returns how messages name a weight."""
    return str(getattr(weight, "path", weight.name))


def described(layer: Any) -> str:
    """Returns how messages name a layer or model: its kind, name and class."""
    kind = "model" if hasattr(layer, "fit") else "layer"
    return f"the {kind} {layer.name!r} ({type(layer).__name__})"


@contextlib.contextmanager
def restored_nodes(layers: list[Any]) -> Iterator[None]:
    """Forgets the graph nodes that the block adds to the layers."""
    lists = [
        getattr(layer, name) for layer in layers for name in ("_inbound_nodes", "_outbound_nodes")
    ]
    lengths = [len(items) for items in lists]
    try:
        yield
    finally:
        for items, length in zip(lists, lengths, strict=True):
            del items[length:]


def written_out(key: Any, rank: int) -> Any:
    """Returns the key of a slice with its Ellipsis, if any, replaced by whole axes."""
    keys = list(key) if isinstance(key, tuple | list) else [key]
    places = [place for place, item in enumerate(keys) if item is Ellipsis]
    if not places:
        return key
    named = sum(item is not None for item in keys) - 1
    keys[places[0] : places[0] + 1] = [slice(None)] * (rank - named)
    return tuple(keys)
