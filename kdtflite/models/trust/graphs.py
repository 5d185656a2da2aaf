"""Checks the graphs and shapes of configurations, which Keras follows without a bound."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from kdtflite.errors import ModelFileError

if TYPE_CHECKING:
    from kdtflite.models.model_files import ModelFile

__all__ = ["refuse_endless_graphs", "refuse_large_shapes"]

_MODELS = frozenset({"Functional", "Model", "Sequential"})
# 1 GiB in float32. A volume of 512 x 512 x 512 voxels has half as many values.
_MOST_ELEMENTS = 1 << 28
_CALLS = frozenset({"SlicingOpLambda", "TFOpLambda"})

Call = tuple[str, int]


def refuse_endless_graphs(file: ModelFile) -> None:
    """Raises if a layer waits for a call that never happens: Keras would look for it for ever.

    Raises:
        ModelFileError: The message names the layer.
    """
    for config in file.configs:
        for part in _walk(config):
            layers = part.get("layers")
            if isinstance(layers, list) and all(isinstance(one, dict) for one in layers):
                waiting = _find_waiting(layers)
                if waiting is not None:
                    raise ModelFileError(
                        f"{file.path} is damaged: layer {waiting[0][:100]!r} takes the output of "
                        f"call {waiting[1][1]} of layer {waiting[1][0][:100]!r}, which waits for "
                        "it in turn, or is not in the file. Save the model again."
                    )


def refuse_large_shapes(file: ModelFile, *, unsafe: bool) -> None:
    """Raises if a configuration declares tensors that no computer of today would fill.

    Raises:
        ModelFileError: The message names the shape, or the call that makes a tensor from nothing.
    """
    for config in () if unsafe else file.configs:
        for part in _walk(config):
            for key, value in part.items():
                sizes = value if isinstance(value, list) and "shape" in key else []
                known = [size for size in sizes if isinstance(size, int) and size > 0]
                if prod(known) > _MOST_ELEMENTS:
                    raise ModelFileError(
                        f"{file.path} is too large to be loaded: its configuration declares the "
                        f"{key[:60]!r} {str(sizes)[:100]}. Expected at most {_MOST_ELEMENTS:,} "
                        "values. Pass unsafe=True / --unsafe if you trust the file."
                    )
            if part.get("class_name") in _CALLS and _makes_from_nothing(part):
                name = part.get("name")
                raise ModelFileError(
                    f"{file.path} computes a constant while it is loaded: layer {str(name)[:100]!r}"
                    " calls its function with numbers only. Put the result into the model, or pass "
                    "unsafe=True / --unsafe if you trust the file."
                )


def _walk(config: Any) -> Iterator[dict[str, Any]]:
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _makes_from_nothing(layer: dict[str, Any]) -> bool:
    nodes = layer.get("inbound_nodes")
    return isinstance(nodes, list) and any(not list(_list_references(node)) for node in nodes)


def _find_waiting(layers: list[dict[str, Any]]) -> tuple[str, Call] | None:
    """Returns a layer whose call cannot be made, and the call that it waits for; or None."""
    calls: dict[Call, set[Call]] = {}
    models = set()
    for layer in layers:
        name, nodes = layer.get("name"), layer.get("inbound_nodes")
        if not isinstance(name, str) or not isinstance(nodes, list):
            return None  # not a graph; Keras says what is wrong with it
        if layer.get("class_name") in _MODELS:
            models.add(name)
        # An input is there before any call.
        found = {(name, 0): set[Call]()} if layer.get("class_name") == "InputLayer" else {}
        for place, node in enumerate(nodes):
            found[name, place] = set(_list_references(node))
        calls |= found
    names = {name for name, _ in calls}
    # The call that made a model may count as its first.
    needed = {
        call: {(name, max(index - (name in models), 0)) for name, index in before if name in names}
        for call, before in calls.items()
    }
    left = Counter({call: len(before) for call, before in needed.items()})
    after = defaultdict(list)
    for call, before in needed.items():
        for one in before:
            after[one].append(call)
    ready = [call for call, count in left.items() if count == 0]
    done = set(ready)
    while ready:
        for call in after[ready.pop()]:
            left[call] -= 1
            if left[call] == 0:
                done.add(call)
                ready.append(call)
    for call, before in needed.items():
        if call not in done:
            missing = sorted(before - done)
            return call[0], missing[0]
    return None


def _list_references(node: Any) -> Iterator[Call]:
    """Yields the layer and call of each tensor in the arguments of a call."""
    waiting = [node]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            match value:
                case [str(name), int(index), int(), *rest] if name != "_CONSTANT_VALUE":
                    yield name, index
                    waiting += rest
                case _:
                    waiting += value
