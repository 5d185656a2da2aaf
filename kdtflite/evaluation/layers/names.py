"""Which layer's operation a tensor of a file comes from, by the name that the file keeps.

The converter names a tensor by the paths of all operations fused into it, "model/relu/Relu;
model/conv/Conv2D", and not always well: a constant that two layers share brings in the other
layer's path too, and a convolution trained with fake quantization names neither the normalization
nor the activation fused into it. So a name is where a search begins, not its end.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tf_keras as keras

from kdtflite.evaluation.layers.trace import Call, Trace
from kdtflite.models.layer_names import strip_prefix
from kdtflite.quantization.layers import FakeQuantized

__all__ = ["Named", "Names", "find_layer_class"]


@dataclass(frozen=True)
class Named:
    """A layer's call that a tensor's name leads to.

    Attributes:
        call: The call.
        tensor: What the named operation itself gives, where the model has that very operation.
        sure: Whether the name has a layer's whole name in it, rather than its beginning.
    """

    call: Call
    tensor: str | None
    sure: bool


def find_layer_class(layer: keras.layers.Layer) -> str:
    """Returns the class of a layer, inside the wrapper of `quantize_aware`."""
    inner = layer.layer if isinstance(layer, FakeQuantized) else layer
    return type(inner).__name__


class Names:
    """The names of a model's operations and layers, as they may stand in a file.

    Names are compared without the prefix "quant_", and with "_" for "/": the parts that a layer
    was taken apart into may be called after it with either.

    Args:
        trace: The model.
    """

    def __init__(self, trace: Trace) -> None:
        self._rounded = trace.rounded
        self._operations: dict[str, tuple[Any, Call]] = {}
        self._layers: dict[str, list[Call]] = {}
        for operation in trace.graph.get_operations():
            call = trace.operations.get(operation.name)
            # What does not depend on samples (weights, shapes) is no output of a layer.
            if call is not None and operation.outputs and operation.name in trace.computed:
                key = _normalize(operation.name.partition("/")[2])
                self._operations.setdefault(key, (operation, call))
        for call in trace.units:
            self._layers.setdefault(_normalize(call.path), []).append(call)
        # A nested model that was opened leaves its layers' own names alone.
        inner = Counter(_normalize(call.layer.name) for call in trace.units)
        for call in trace.units:
            name = _normalize(call.layer.name)
            if inner[name] == 1:
                self._layers.setdefault(name, [call])

    def find(self, tensor_name: str, part: tuple[int, int] = (0, 1)) -> list[Named]:
        """Returns what each of the paths in a tensor's name leads to, in their order.

        Args:
            tensor_name: The name in the file.
            part: Which of its operator's outputs the tensor is, and of how many.
        """
        found = (self._find_path(path, part) for path in tensor_name.split(";"))
        return [named for named in found if named is not None]

    def _find_path(self, path: str, part: tuple[int, int]) -> Named | None:
        if re.search(r"ReadVariableOp|/resource", path):
            return None
        path, _, number = path.partition(":")
        _, _, inside = path.partition("/")
        for candidate in (inside, path):
            for key in _strip_digits(_normalize(candidate)):
                if key in self._operations:
                    operation, call = self._operations[key]
                    which = int(number) if number.isdigit() else 0
                    # Names of several outputs are made unique, in an order of their own.
                    if len(operation.outputs) == part[1]:
                        which = part[0]
                    made = str(operation.outputs[min(which, len(operation.outputs) - 1)].name)
                    # The file has no tensor that is not rounded yet.
                    return Named(call, self._rounded.get(made, made), sure=True)
        for candidate in (inside, path):
            if named := self._find_layer(candidate):
                return named
        return None

    def _find_layer(self, path: str) -> Named | None:
        key = _normalize(path)
        known = [name for name in self._layers if f"{key}_".startswith(f"{name}_")]
        if not known:
            return None
        name = max(known, key=len)
        calls = self._layers[name]
        # "Conv2D_1" is of the layer's second call; where that does not tell, nothing does.
        told = re.search(r"_(\d+)$", path)
        number = int(told[1]) if told and len(calls) > 1 else 0
        if number >= len(calls):
            return None
        whole = f"{strip_prefix(path)}/".startswith(f"{strip_prefix(calls[0].path)}/")
        return Named(calls[number], None, sure=whole)


def _normalize(path: str) -> str:
    return strip_prefix(path).replace("/", "_")


def _strip_digits(key: str) -> Iterable[str]:
    """Yields a name as it is, then without the number that the converter makes it unique by."""
    yield key
    while key and key[-1].isdigit():
        key = key[:-1]
        yield key
