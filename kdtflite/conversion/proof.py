"""The proof of any target: the dtypes in the file, held against what the target promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from kdtflite.conversion.four_bits import fits_blocks
from kdtflite.conversion.integer_proof import (
    IntegerProof,
    layer_of_operator,
    prove_fully_integer,
    run_once,
)
from kdtflite.conversion.targets import Target, get_target
from kdtflite.errors import ConversionError, ModelFileError
from kdtflite.flatbuffer import FileTensor, Operator
from kdtflite.litemodel import LiteModel

__all__ = ["TargetProof", "prove_target"]

_LISTED = 8
_WEIGHTS_AT = {
    "CONV_2D": 1,
    "CONV_3D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "EMBEDDING_LOOKUP": 1,
    "FULLY_CONNECTED": 1,
    "GATHER": 0,
    "TRANSPOSE_CONV": 1,
}
_BIAS_AT = {
    "CONV_2D": 2,
    "CONV_3D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
}


@dataclass(frozen=True)
class TargetProof:
    """What was inspected to say that a file is what its target promises.

    Attributes:
        target: Name of the target.
        weights: How many weights have each dtype: the kernels of convolutions and Dense layers,
            embedding tables, and any other constant of more than one axis.
        biases: The same of the biases of convolutions and Dense layers.
        activations: How many tensors that operators write have each dtype.
        inputs: Name, shape, dtype, scale and zero point of each input.
        outputs: The same of each output.
        kept: Weights of another dtype than promised, which the target allows: tensor, dtype,
            shape, operator and layer of each.
        invoked_with: What ran the file once on zeros: "XNNPACK" or "built-in kernels".
        size: Bytes of the file.
        integer: The proof that it is fully integer, for the targets that promise it.
    """

    target: str
    weights: dict[str, int]
    biases: dict[str, int]
    activations: dict[str, int]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    kept: tuple[dict[str, Any], ...]
    invoked_with: str
    size: int
    integer: IntegerProof | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the proof as plain values for JSON; an integer proof's entries are among them."""
        return {
            "fully_integer": False,
            **(self.integer.to_dict() if self.integer else {}),
            "target": self.target,
            "weights": self.weights,
            "biases": self.biases,
            "activations": self.activations,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "kept": list(self.kept),
            "invoked_with": self.invoked_with,
            "bytes": self.size,
        }

    def __str__(self) -> str:
        counted = ", ".join(f"{count} {dtype}" for dtype, count in self.weights.items()) or "none"
        if self.integer is not None:
            return f"{self.integer} Target {self.target}: weights {counted}."
        names = ", ".join(str(kept["layer"] or kept["tensor"]) for kept in self.kept[:_LISTED])
        more = ", ..." if len(self.kept) > _LISTED else ""
        return (
            f"Target {self.target}: weights {counted}"
            f"{f' (not {_promised(self.target)}: {names}{more})' if self.kept else ''}; "
            f"{self.inputs[0]['dtype']} in, {self.outputs[0]['dtype']} out; ran once with "
            f"{self.invoked_with}."
        )


def prove_target(
    lite: LiteModel, target: str = "int8", *, layers: Iterable[str] = ()
) -> TargetProof:
    """Holds every weight, bias, activation, input and output of a file against a target.

    Args:
        lite: The file, by whatever program.
        target: Name of the target.
        layers: Names of the Keras model's layers, to say which layer an operator comes from.

    Raises:
        NotFullyIntegerError: The target is fully integer and the file is not.
        ConversionError: A tensor has another dtype than the target promises, no weight has the
            promised one, a weight is beyond float16's range, or LiteRT cannot run the file;
            names operator, tensor and layer.
        ConfigurationError: There is no such target.
    """
    promised, layers = get_target(target), tuple(layers)
    integer = prove_fully_integer(lite, layers=layers) if promised.fully_integer else None
    graph = _Graph(lite, layers)
    weights = list(graph.weights())
    faults = [
        *_end_faults(lite, promised),
        *_weight_faults(promised, weights),
        *graph.bias_faults(promised),
        *graph.activation_faults(promised),
    ]
    if promised.weights == "float16":
        faults += _overflows(lite, weights)
    if faults:
        more = f" And {len(faults) - _LISTED} more." if len(faults) > _LISTED else ""
        raise ConversionError(
            f"The file is not what target {target!r} promises: {'; '.join(faults[:_LISTED])}.{more}"
        )
    if weights and all(weight.tensor.dtype != promised.weights for weight in weights):
        raise ConversionError(_none_became(promised, weights))
    if promised.block_size and not any(w.tensor.block_size for w in weights):
        raise ConversionError(
            f"No Dense layer of the file has a scale for every {promised.block_size} weights, "
            f"which target {target!r} promises: that takes four units or more, inputs divisible "
            f"by {promised.block_size}, and no activation fused into the layer. "
            "Convert to 'int4' instead."
        )
    return TargetProof(
        target=target,
        weights=_counted(weight.tensor.dtype for weight in weights),
        biases=_counted(tensor.dtype for _, tensor in graph.biases()),
        activations=_counted(tensor.dtype for _, tensor in graph.activations()),
        inputs=tuple(spec.to_dict() for spec in lite.inputs),
        outputs=tuple(spec.to_dict() for spec in lite.outputs),
        kept=tuple(w.to_dict() for w in weights if w.tensor.dtype != promised.weights),
        invoked_with=integer.invoked_with if integer else _run(lite, target),
        size=len(lite.content),
        integer=integer,
    )


@dataclass(frozen=True)
class _Weight:
    """A constant, and the first operator that reads it."""

    tensor: FileTensor
    operator: Operator
    layer: str

    def __str__(self) -> str:
        origin = f", from layer {self.layer!r}" if self.layer else ""
        return (
            f"operator {self.operator.index} {self.operator.name} reads the {self.tensor.dtype} "
            f"weights {self.tensor.name!r}{origin}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "tensor": self.tensor.name,
            "dtype": self.tensor.dtype,
            "shape": list(self.tensor.shape),
            "operator": self.operator.name,
            "layer": self.layer,
        }


class _Graph:
    """The file's operators with their tensors; a constant that is only dequantized is looked
    through."""

    def __init__(self, lite: LiteModel, layers: tuple[str, ...]) -> None:
        self._lite = lite
        self._layers = layers
        self._tensors = {(t.subgraph, t.index): t for t in lite.tensors}
        self._stored = {
            (operator.subgraph, operator.outputs[0]): self._tensors[
                operator.subgraph, operator.inputs[0]
            ]
            for operator in lite.operators
            if self._dequantizes_a_constant(operator)
        }
        self._operators = [o for o in lite.operators if not self._dequantizes_a_constant(o)]

    def weights(self) -> Iterator[_Weight]:
        seen: set[tuple[int, int]] = set()
        for operator in self._operators:
            for position, index in enumerate(operator.inputs):
                tensor = self._constant(operator, index)
                if tensor is None or (tensor.subgraph, tensor.index) in seen:
                    continue
                if _WEIGHTS_AT.get(operator.name) == position or _is_matrix(tensor):
                    seen.add((tensor.subgraph, tensor.index))
                    yield _Weight(tensor, operator, self._layer(operator))

    def biases(self) -> Iterator[tuple[Operator, FileTensor]]:
        for operator in self._operators:
            position = _BIAS_AT.get(operator.name, len(operator.inputs))
            for index in operator.inputs[position : position + 1]:
                tensor = self._constant(operator, index)
                if tensor is not None:
                    yield operator, tensor

    def activations(self) -> Iterator[tuple[Operator, FileTensor]]:
        for operator in self._operators:
            for index in operator.outputs:
                yield operator, self._tensors[operator.subgraph, index]

    def bias_faults(self, promised: Target) -> Iterator[str]:
        # A float file's biases are small: float16, or float32 as they were.
        for operator, tensor in self.biases() if promised.fully_integer else ():
            if tensor.dtype != promised.biases:
                yield self._fault(operator, "reads", tensor, "bias", promised.biases)

    def activation_faults(self, promised: Target) -> Iterator[str]:
        allowed = {promised.activations, *promised.io_dtypes}
        for operator, tensor in self.activations():
            # Shapes, indices and masks are integers that stand for themselves; rows of a table
            # come out of it as they are stored.
            taken = operator.name == "GATHER" and tensor.dtype == promised.weights
            if _is_real(tensor) and tensor.dtype not in allowed and not taken:
                yield self._fault(operator, "writes", tensor, "tensor", promised.activations)

    def _fault(
        self, operator: Operator, verb: str, tensor: FileTensor, role: str, expected: str
    ) -> str:
        layer = self._layer(operator)
        origin = f", from layer {layer!r}" if layer else ""
        return (
            f"operator {operator.index} {operator.name} {verb} the {tensor.dtype} {role} "
            f"{tensor.name!r}{origin} (expected {expected})"
        )

    def _constant(self, operator: Operator, index: int) -> FileTensor | None:
        """Returns the constant with real values that an operator reads there, if it is one."""
        place = (operator.subgraph, index)
        tensor = self._stored.get(place) or self._tensors.get(place)
        return tensor if tensor and tensor.is_constant and _is_real(tensor) else None

    def _dequantizes_a_constant(self, operator: Operator) -> bool:
        return (
            operator.name == "DEQUANTIZE"
            and self._tensors[operator.subgraph, operator.inputs[0]].is_constant
        )

    def _layer(self, operator: Operator) -> str:
        return layer_of_operator(self._lite, operator, self._layers) or ""


def _is_real(tensor: FileTensor) -> bool:
    return tensor.dtype.startswith("float") or bool(tensor.scales or tensor.block_size)


def _is_matrix(tensor: FileTensor) -> bool:
    return sum(size > 1 for size in tensor.shape) > 1


def _weight_faults(promised: Target, weights: list[_Weight]) -> Iterator[str]:
    for weight in weights:
        tensor, operator = weight.tensor, weight.operator
        small = tensor.dtype == "float32" and prod(tensor.shape) < promised.least_elements
        if operator.name in promised.held and tensor.dtype != promised.weights and not small:
            yield f"{weight} (expected {promised.weights})"
        elif (
            promised.block_size
            and operator.name == "FULLY_CONNECTED"
            and fits_blocks(operator, tensor, promised.block_size)
            and tensor.block_size != promised.block_size
        ):
            yield f"{weight} with a scale a channel (expected one a {promised.block_size} weights)"


def _end_faults(lite: LiteModel, promised: Target) -> Iterator[str]:
    for role, specs in (("input", lite.inputs), ("output", lite.outputs)):
        for spec in specs:
            real = spec.scale is not None or spec.dtype.startswith("float")
            if real and spec.dtype not in promised.io_dtypes:
                expected = " or ".join(promised.io_dtypes)
                yield f"the {role} {spec.name!r} is {spec.dtype} (expected {expected})"


def _overflows(lite: LiteModel, weights: list[_Weight]) -> Iterator[str]:
    """Yields a phrase for each weight that the converter cut to float16's largest number."""
    largest = np.finfo(np.float16).max
    interpreter = lite.interpreter(xnnpack=False)
    for weight in weights:
        tensor = weight.tensor
        if tensor.dtype == "float16" and tensor.subgraph == 0:
            values = np.abs(interpreter.get_tensor(tensor.index))
            if not (values < largest).all():
                yield f"{weight}, some beyond float16's largest number, {largest:.0f}"


def _none_became(promised: Target, weights: list[_Weight]) -> str:
    why = (
        f"Those of fewer than {promised.least_elements:,} elements stay as they are, and it has "
        "no others."
        if promised.least_elements
        else f"It has none in {' or '.join(sorted(promised.held))}."
    )
    return (
        f"No weight of the file is {promised.weights}, which target {promised.name!r} promises; "
        f"the first is: {weights[0]}. {why} Convert to 'int8' or 'float16' instead."
    )


def _run(lite: LiteModel, target: str) -> str:
    try:
        return run_once(lite)
    except ModelFileError as error:
        raise ConversionError(
            f"The {target} file cannot be run by LiteRT: {error} Convert to another target."
        ) from error


def _counted(dtypes: Iterable[str]) -> dict[str, int]:
    return dict(Counter(dtypes).most_common())


def _promised(target: str) -> str:
    return get_target(target).weights
