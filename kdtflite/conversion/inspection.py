"""What the proofs inspect: a file's operators, their tensors and layers, and one run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kdtflite.lite.flatbuffer import FileTensor, Operator
from kdtflite.lite.model import LiteModel
from kdtflite.lite.operators import BIAS_POSITION, WEIGHT_POSITION
from kdtflite.models.layer_names import strip_prefix

__all__ = ["FileGraph", "Weight", "find_layer", "is_real", "join_faults", "run_once"]

_LISTED = 6


@dataclass(frozen=True)
class Weight:
    """A constant, the first operator that reads it, and the layer it comes from ("": unknown)."""

    tensor: FileTensor
    operator: Operator
    layer: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the weight as plain values for JSON."""
        return {
            "tensor": self.tensor.name,
            "dtype": self.tensor.dtype,
            "shape": list(self.tensor.shape),
            "operator": self.operator.name,
            "layer": self.layer,
        }


class FileGraph:
    """A file's operators with their tensors and layers.

    The lists ignore a DEQUANTIZE that only unpacks a constant: the operator behind it counts as
    reading the stored tensor.

    Args:
        lite: The file.
        layers: Names of the Keras model's layers, to say which layer an operator comes from.
    """

    def __init__(self, lite: LiteModel, layers: Iterable[str] = ()) -> None:
        self.lite = lite
        self._layers = frozenset(layers)
        self.tensors = {(tensor.subgraph, tensor.index): tensor for tensor in lite.tensors}
        unpacking = [o for o in lite.operators if self._unpacks_a_constant(o)]
        self._unpacked = {
            (o.subgraph, o.outputs[0]): self.tensors[o.subgraph, o.inputs[0]] for o in unpacking
        }
        self._operators = [o for o in lite.operators if o not in unpacking]

    def get_dtype(self, operator: Operator, index: int) -> str:
        """Returns the dtype of an operator's tensor; "" if it has no such tensor."""
        tensor = self.tensors.get((operator.subgraph, index))
        return tensor.dtype if tensor else ""

    def find_layer(self, operator: Operator) -> str:
        """Returns which layer an operator comes from, by its tensors' names; "" if none says."""
        # The first input is the output of the layer before; weights and biases come after it.
        for index in (*operator.outputs, *operator.inputs[1:], *operator.inputs[:1]):
            tensor = self.tensors.get((operator.subgraph, index))
            found = find_layer(tensor.name, self._layers) if tensor else None
            if found:
                return found
        return ""

    def describe(self, operator: Operator, verb: str, tensor: FileTensor, role: str) -> str:
        """Returns "operator 3 CONV_2D reads the float32 weights 'w', from layer 'conv'"."""
        return (
            f"operator {operator.index} {operator.name} {verb} the {tensor.dtype} {role} "
            f"{tensor.name!r}{self.describe_origin(operator)}"
        )

    def describe_origin(self, operator: Operator) -> str:
        """Returns ", from layer 'conv'", or "" if no layer is known."""
        layer = self.find_layer(operator)
        return f", from layer {layer!r}" if layer else ""

    def list_weights(self) -> Iterator[Weight]:
        """Yields each constant that is an operator's weights, or a matrix, once."""
        seen: set[tuple[int, int]] = set()
        for operator in self._operators:
            for position, index in enumerate(operator.inputs):
                tensor = self._find_constant(operator, index)
                if tensor is None or (tensor.subgraph, tensor.index) in seen:
                    continue
                if WEIGHT_POSITION.get(operator.name) == position or _is_matrix(tensor):
                    seen.add((tensor.subgraph, tensor.index))
                    yield Weight(tensor, operator, self.find_layer(operator))

    def list_biases(self) -> Iterator[tuple[Operator, FileTensor]]:
        """Yields each operator's constant bias."""
        for operator in self._operators:
            position = BIAS_POSITION.get(operator.name, len(operator.inputs))
            for index in operator.inputs[position : position + 1]:
                tensor = self._find_constant(operator, index)
                if tensor is not None:
                    yield operator, tensor

    def list_activations(self) -> Iterator[tuple[Operator, FileTensor]]:
        """Yields each tensor that an operator writes."""
        for operator in self._operators:
            for index in operator.outputs:
                yield operator, self.tensors[operator.subgraph, index]

    def _find_constant(self, operator: Operator, index: int) -> FileTensor | None:
        """Returns the constant of real values that an operator reads there, if it is one."""
        place = (operator.subgraph, index)
        tensor = self._unpacked.get(place) or self.tensors.get(place)
        return tensor if tensor and tensor.is_constant and is_real(tensor) else None

    def _unpacks_a_constant(self, operator: Operator) -> bool:
        return (
            operator.name == "DEQUANTIZE"
            and self.tensors[operator.subgraph, operator.inputs[0]].is_constant
        )


def is_real(tensor: FileTensor) -> bool:
    """Returns whether a tensor holds real values; shapes, indices and masks do not."""
    return tensor.dtype.startswith("float") or bool(tensor.scales or tensor.block_size)


def _is_matrix(tensor: FileTensor) -> bool:
    return sum(size > 1 for size in tensor.shape) > 1


def find_layer(tensor_name: str, layers: Iterable[str]) -> str | None:
    """Returns which of `layers` a tensor comes from, by the path in its name.

    Example:
        >>> from kdtflite.conversion.inspection import find_layer
        >>> find_layer("model/quant_conv2d/Conv2D;model/other", ["conv2d", "dense"])
        'conv2d'
    """
    known = set(layers)
    for part in re.split(r"[/;:]", tensor_name):
        for candidate in (part, strip_prefix(part)):
            if candidate in known:
                return candidate
    return None


def join_faults(faults: list[str]) -> str:
    """Returns the first faults in one sentence, and how many more there are."""
    more = f" And {len(faults) - _LISTED} more." if len(faults) > _LISTED else ""
    return f"{'; '.join(faults[:_LISTED])}.{more}"


def run_once(lite: LiteModel) -> str:
    """Runs a file on zeros as LiteRT does by default; returns what ran it ("XNNPACK").

    Raises:
        ModelFileError: The delegate, or a kernel, refuses the file.
    """
    operators = lite.run_on_zeros()._get_ops_details()
    # LiteRT lists a node of this name for every part that the delegate took over.
    delegated = any(operator["op_name"] == "DELEGATE" for operator in operators)
    return "XNNPACK" if delegated else "built-in kernels"
