"""The proof that every tensor and operator of a file is integer and the default runtime runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdtflite.arguments import check_arguments
from kdtflite.conversion.inspection import FileGraph, join_faults, run_once
from kdtflite.errors import ModelFileError, NotFullyIntegerError
from kdtflite.lite.model import as_lite_model
from kdtflite.lite.operators import INTEGER_DTYPES, QUANTIZING
from kdtflite.results import Axes, Result, Table, make_axes, make_table

__all__ = ["IntegerProof", "find_floats", "prove_fully_integer"]


@dataclass(frozen=True)
class IntegerProof(Result):
    """What was inspected to call a file fully integer.

    Attributes:
        operators: Kind, dtypes of inputs and outputs, and layer of each operator, in order.
        tensor_dtypes: The number of tensors of each dtype.
        input: The file's first input: name, shape, dtype, scale, zero point.
        output: The same for its first output.
        invoked_with: What ran the file once on zeros: "XNNPACK" or "built-in kernels".
        size: Size of the file in bytes.
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

    def to_table(self) -> Table:
        """Returns a table with one row per operator."""
        rows = (
            (each["name"], each["layer"], " ".join(each["inputs"]), " ".join(each["outputs"]))
            for each in self.operators
        )
        return make_table(rows, text=("operator", "layer", "inputs", "outputs"))

    def summary(self) -> str:
        """Returns in one line what was inspected, and what ran the file."""
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.tensor_dtypes.items())
        return (
            f"Fully integer: {len(self.operators)} operators, {dtypes} tensors, no float; "
            f"{self.input['dtype']} in, {self.output['dtype']} out; ran once with "
            f"{self.invoked_with}."
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the number of tensors of each dtype.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        ax = make_axes(ax, 5, 3, ylabel="tensors")
        ax.bar(list(self.tensor_dtypes), list(self.tensor_dtypes.values()))
        return ax


@check_arguments
def prove_fully_integer(lite: Any, *, layers: Iterable[str] = ()) -> IntegerProof:
    """Inspects every tensor and operator of a file and runs it once with the default delegate.

    The converter's own setting for integer operators guarantees nothing: an operator without an
    integer kernel silently becomes DEQUANTIZE, the float operator, QUANTIZE.

    Args:
        lite: The file: a LiteModel, its bytes or its path.
        layers: Names of the Keras model's layers, to say which layer an operator comes from.

    Raises:
        NotFullyIntegerError: There is a float tensor, a custom or Flex operator, or a float input
            or output, or the default delegate refuses the file; names operator, tensor and layer.
        ModelFileError: The file cannot be read.
        UnsupportedModelError: `lite` is not a .tflite file.

    Example:
        >>> import kdtflite, numpy as np, tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> lite = kdtflite.convert(model, np.eye(4).repeat(30, 0), progress=False)
        >>> proof = kdtflite.prove_fully_integer(lite, layers=["logits"])
        >>> proof.operators[0]["name"], proof.operators[0]["layer"], proof.input["dtype"]
        ('FULLY_CONNECTED', 'logits', 'int8')
    """
    lite = as_lite_model(lite)
    graph = FileGraph(lite, layers)
    faults = _list_float_faults(graph)
    if faults:
        raise NotFullyIntegerError(
            f"The file is not fully integer: {join_faults(faults)} "
            "Replace the layer by one with an integer kernel (ReLU in place of ELU, for example)."
        )
    operators = tuple(
        {
            "index": operator.index,
            "name": operator.name,
            "inputs": [graph.get_dtype(operator, i) for i in operator.inputs if i >= 0],
            "outputs": [graph.get_dtype(operator, i) for i in operator.outputs],
            "layer": graph.find_layer(operator),
        }
        for operator in lite.operators
    )
    try:
        invoked_with = run_once(lite)
    except ModelFileError as error:
        # XNNPACK, a phone's default, refuses files that the plain kernels run (an activation that
        # is always zero): a file that only looks integer is useless.
        raise NotFullyIntegerError(
            f"The file is integer, but LiteRT's default delegate cannot run it: {error} "
            "A layer whose output is always zero is the usual cause: look for dead activations."
        ) from error
    return IntegerProof(
        operators=operators,
        tensor_dtypes=dict(Counter(tensor.dtype for tensor in lite.tensors).most_common()),
        input=lite.inputs[0].to_dict(),
        output=lite.outputs[0].to_dict(),
        invoked_with=invoked_with,
        size=len(lite.content),
    )


def find_floats(lite: Any, layers: Iterable[str] = ()) -> list[str]:
    """Returns a phrase for each float tensor, custom operator, and float input or output.

    Args:
        lite: The file: a LiteModel, its bytes or its path.
        layers: Names of the Keras model's layers, to say which layer an operator comes from.
    """
    return _list_float_faults(FileGraph(as_lite_model(lite), layers))


def _list_float_faults(graph: FileGraph) -> list[str]:
    lite = graph.lite
    faults, named = [], set()
    # DEQUANTIZE and QUANTIZE surround the operator that is to blame, so that one is named first.
    for operator in sorted(lite.operators, key=lambda o: o.name in QUANTIZING):
        if operator.custom:
            kind = "Flex" if operator.name.startswith("Flex") else "custom"
            faults.append(
                f"operator {operator.index} is the {kind} operator {operator.name}"
                f"{graph.describe_origin(operator)}"
            )
        for verb, indices in (("reads", operator.inputs), ("writes", operator.outputs)):
            for index in indices:
                place = (operator.subgraph, index)
                tensor = graph.tensors.get(place)
                if tensor is None or tensor.dtype in INTEGER_DTYPES or place in named:
                    continue
                faults.append(graph.describe(operator, verb, tensor, "tensor"))
                named.add(place)
    faults += [
        f"tensor {tensor.name!r} is {tensor.dtype}"
        for place, tensor in graph.tensors.items()
        if tensor.dtype not in INTEGER_DTYPES and place not in named
    ]
    for role, specs in (("input", lite.inputs), ("output", lite.outputs)):
        faults += [
            f"the {role} {spec.name!r} is {spec.dtype}"
            for spec in specs
            if spec.dtype not in INTEGER_DTYPES
        ]
    return faults
