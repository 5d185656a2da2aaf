"""The proof: every tensor and operator of a file is integer, and the default runtime runs it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.errors import ModelFileError, NotFullyIntegerError, one_line
from kdtflite.flatbuffer import FileTensor, Operator
from kdtflite.litemodel import LiteModel

__all__ = [
    "IntegerProof",
    "find_floats",
    "layer_of",
    "layer_of_operator",
    "prove_fully_integer",
    "run_once",
]

_INTEGER = frozenset(
    {
        "bool",
        "int2",
        "int4",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint4",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    }
)
_LISTED = 6


@dataclass(frozen=True)
class IntegerProof:
    """What was inspected to call a file fully integer.

    Attributes:
        operators: Kind, dtypes of inputs and outputs, and layer of each operator, in order.
        tensor_dtypes: How many tensors have each dtype.
        input: The file's first input: name, shape, dtype, scale, zero point.
        output: The same of its first output.
        invoked_with: The delegate with which the file was run once.
        size: Bytes of the file.
    """

    operators: tuple[dict[str, Any], ...]
    tensor_dtypes: dict[str, int]
    input: dict[str, Any]
    output: dict[str, Any]
    invoked_with: str
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the proof as plain values for JSON."""
        return {
            "fully_integer": True,
            "operators": list(self.operators),
            "tensor_dtypes": self.tensor_dtypes,
            "float_tensors": 0,
            "input": self.input,
            "output": self.output,
            "invoked_with": self.invoked_with,
            "bytes": self.size,
        }

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.tensor_dtypes.items())
        return (
            f"Fully integer: {len(self.operators)} operators, {dtypes} tensors, no float; "
            f"{self.input['dtype']} in, {self.output['dtype']} out; ran once with "
            f"{self.invoked_with}."
        )


def prove_fully_integer(lite: LiteModel, *, layers: Iterable[str] = ()) -> IntegerProof:
    """Inspects every tensor and operator of a file and runs it once with the default delegate.

    The converter's own setting for integer operators is no guarantee: an operator without an
    integer kernel becomes DEQUANTIZE, the float operator, QUANTIZE, without a word.

    Args:
        lite: The file.
        layers: Names of the Keras model's layers, to say which layer an operator comes from.

    Raises:
        NotFullyIntegerError: A float tensor, a custom or Flex operator, float inputs or outputs,
            or a file that the default delegate refuses; names operator, tensor and layer.
    """
    layers = tuple(layers)
    faults = find_floats(lite, layers)
    if faults:
        more = f" And {len(faults) - _LISTED} more." if len(faults) > _LISTED else ""
        raise NotFullyIntegerError(
            f"The file is not fully integer: {'; '.join(faults[:_LISTED])}.{more} "
            "Replace the layer by one with an integer kernel (ReLU in place of ELU, for example)."
        )
    operators = tuple(
        {
            "index": operator.index,
            "name": operator.name,
            "inputs": [_dtype(lite, operator.subgraph, i) for i in operator.inputs if i >= 0],
            "outputs": [_dtype(lite, operator.subgraph, i) for i in operator.outputs],
            "layer": layer_of_operator(lite, operator, layers) or "",
        }
        for operator in lite.operators
    )
    return IntegerProof(
        operators=operators,
        tensor_dtypes=dict(Counter(tensor.dtype for tensor in lite.tensors).most_common()),
        input=lite.inputs[0].to_dict(),
        output=lite.outputs[0].to_dict(),
        invoked_with=_invoke(lite),
        size=len(lite.content),
    )


def find_floats(lite: LiteModel, layers: Iterable[str] = ()) -> list[str]:
    """Returns a phrase for each float tensor's operator, custom operator and float end."""
    layers = tuple(layers)
    tensors = {(tensor.subgraph, tensor.index): tensor for tensor in lite.tensors}
    faults, named = [], set()
    # DEQUANTIZE and QUANTIZE stand around the operator that is to blame: it comes first.
    for operator in sorted(lite.operators, key=lambda o: o.name in ("DEQUANTIZE", "QUANTIZE")):
        layer = layer_of_operator(lite, operator, layers)
        origin = f", from layer {layer!r}" if layer else ""
        if operator.custom:
            kind = "Flex" if operator.name.startswith("Flex") else "custom"
            faults.append(
                f"operator {operator.index} is the {kind} operator {operator.name}{origin}"
            )
        for role, indices in (("reads", operator.inputs), ("writes", operator.outputs)):
            for index in indices:
                tensor = tensors.get((operator.subgraph, index))
                if tensor is None or tensor.dtype in _INTEGER:
                    continue
                if (tensor.subgraph, tensor.index) not in named:
                    faults.append(
                        f"operator {operator.index} {operator.name} {role} the {tensor.dtype} "
                        f"tensor {tensor.name!r}{origin}"
                    )
                named.add((tensor.subgraph, tensor.index))
    faults += [
        f"tensor {tensor.name!r} is {tensor.dtype}"
        for key, tensor in tensors.items()
        if tensor.dtype not in _INTEGER and key not in named
    ]
    for role, specs in (("input", lite.inputs), ("output", lite.outputs)):
        faults += [
            f"the {role} {spec.name!r} is {spec.dtype}"
            for spec in specs
            if spec.dtype not in _INTEGER
        ]
    return faults


def layer_of(tensor_name: str, layers: Iterable[str]) -> str | None:
    """Returns which of `layers` a tensor comes from, by the path that its name keeps.

    "model/quant_conv2d/Conv2D;model/..." comes from layer "conv2d".
    """
    known = set(layers)
    for part in re.split(r"[/;:]", tensor_name):
        for candidate in (part, part.removeprefix("quant_")):
            if candidate in known:
                return candidate
    return None


def layer_of_operator(lite: LiteModel, operator: Operator, layers: Iterable[str]) -> str | None:
    """Returns which of `layers` an operator comes from, by the names of its tensors."""
    # The first input is what the layer before gave; weights and biases come after it.
    for index in (*operator.outputs, *operator.inputs[1:], *operator.inputs[:1]):
        tensor = _tensor(lite, operator.subgraph, index)
        found = layer_of(tensor.name, layers) if tensor else None
        if found:
            return found
    return None


def _tensor(lite: LiteModel, subgraph: int, index: int) -> FileTensor | None:
    return next((t for t in lite.tensors if t.subgraph == subgraph and t.index == index), None)


def _dtype(lite: LiteModel, subgraph: int, index: int) -> str:
    tensor = _tensor(lite, subgraph, index)
    return tensor.dtype if tensor else ""


def _invoke(lite: LiteModel) -> str:
    # XNNPACK refuses files that the plain kernels run (an activation that is always zero), and a
    # phone's default is XNNPACK: a file that only looks integer is no use.
    try:
        return run_once(lite)
    except ModelFileError as error:
        raise NotFullyIntegerError(
            f"The file is integer, but LiteRT's default delegate cannot run it: {error} "
            "A layer whose output is always zero is the usual cause: look for dead activations."
        ) from error


def run_once(lite: LiteModel) -> str:
    """Runs a file on zeros as LiteRT does by default; returns what took it ("XNNPACK").

    Raises:
        ModelFileError: The delegate, or a kernel, refuses the file.
    """
    interpreter = lite.interpreter(xnnpack=True)
    try:
        for spec in lite.inputs:
            interpreter.set_tensor(spec.index, np.zeros(spec.shape, spec.dtype))
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(f"LiteRT cannot run this file: {one_line(error)}.") from error
    # LiteRT lists a node of this name for every part that the delegate took over.
    delegated = any(node["op_name"] == "DELEGATE" for node in interpreter._get_ops_details())
    return "XNNPACK" if delegated else "built-in kernels"
