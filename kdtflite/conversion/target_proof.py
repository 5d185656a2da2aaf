"""The proof of any target: every dtype in the file is the one that the target promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from kdtflite.conversion.four_bits import fits_blocks
from kdtflite.conversion.inspection import FileGraph, Weight, is_real, join_faults, run_once
from kdtflite.conversion.integer_proof import IntegerProof, prove_fully_integer
from kdtflite.conversion.targets import Target, get_target
from kdtflite.errors import ConversionError, ModelFileError
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.results import Axes, Result, Table, make_axes, make_table

__all__ = ["TargetProof", "prove_target"]

_LISTED = 8


@dataclass(frozen=True)
class TargetProof(Result):
    """What was inspected to say that a file is what its target promises.

    Attributes:
        target: Name of the target.
        weights: The number of weights of each dtype: kernels of convolutions and Dense layers,
            embedding tables, and any other constant of more than one axis.
        biases: The same for the biases of convolutions and Dense layers.
        activations: The same for the tensors that operators write.
        inputs: Name, shape, dtype, scale and zero point of each input.
        outputs: The same for each output.
        kept: Weights of another dtype than promised, which the target allows: tensor, dtype,
            shape, operator and layer of each.
        invoked_with: What ran the file once on zeros: "XNNPACK" or "built-in kernels".
        size: Size of the file in bytes.
        integer: The proof that the file is fully integer, for the targets that promise it.
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
        """Returns the proof as plain values for JSON, with the entries of an integer proof."""
        values = super().to_dict()
        integer, size = values.pop("integer"), values.pop("size")
        runtimes = get_target(self.target).runtimes
        return {
            "fully_integer": False,
            **(integer or {}),
            **values,
            "runtimes": runtimes,
            "bytes": size,
        }

    def to_table(self) -> Table:
        """Returns a table with one row per dtype: how many tensors of each role have it."""
        counts = self._counts.values()
        rows = (
            (dtype, *(f"{count[dtype]:,}" if count.get(dtype) else "" for count in counts))
            for dtype in self._dtypes
        )
        return make_table(rows, text=["dtype"], numbers=list(self._counts))

    def summary(self) -> str:
        """Returns in one line the weights' dtypes, the exceptions, and what ran the file."""
        counts = ", ".join(f"{count} {dtype}" for dtype, count in self.weights.items()) or "none"
        names = ", ".join(str(kept["layer"] or kept["tensor"]) for kept in self.kept[:_LISTED])
        more = ", ..." if len(self.kept) > _LISTED else ""
        promised = get_target(self.target)
        kept = f" (not {promised.weights}: {names}{more})" if self.kept else ""
        weights = f"Target {self.target}: weights {counts}{kept}"
        if self.integer is not None:
            runtimes = f" {promised.runtimes}" if promised.runtimes else ""
            return f"{self.integer.summary()} {weights}.{runtimes}"
        return (
            f"{weights}; {self.inputs[0]['dtype']} in, {self.outputs[0]['dtype']} out; ran once "
            f"with {self.invoked_with}."
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws how many weights, biases and activations have each dtype.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        ax = make_axes(ax, 5, 3, ylabel="tensors")
        bottom = np.zeros(len(self._counts))
        for dtype in self._dtypes:
            heights = [count.get(dtype, 0) for count in self._counts.values()]
            ax.bar(list(self._counts), heights, bottom=bottom, label=dtype)
            bottom += heights
        ax.legend()
        return ax

    @property
    def _counts(self) -> dict[str, dict[str, int]]:
        return {
            "weights": self.weights,
            "biases": self.biases,
            "activations": self.activations,
        }

    @property
    def _dtypes(self) -> list[str]:
        return sorted({dtype for count in self._counts.values() for dtype in count})


def prove_target(lite: Any, target: str = "int8", *, layers: Iterable[str] = ()) -> TargetProof:
    """Checks every weight, bias, activation, input and output of a file against a target.

    Args:
        lite: The file, written by any program: a LiteModel, its bytes or its path.
        target: Name of the target.
        layers: Names of the Keras model's layers, to say which layer an operator comes from.

    Raises:
        NotFullyIntegerError: The target is fully integer and the file is not.
        ConversionError: A tensor has another dtype than the target promises, no weight has the
            promised one, a weight is beyond float16's range, or LiteRT cannot run the file;
            names operator, tensor and layer.
        ConfigurationError: There is no such target.
        ModelFileError: The file cannot be read.
        UnsupportedModelError: `lite` is not a .tflite file.
    """
    lite = as_lite_model(lite)
    promised, layers = get_target(target), tuple(layers)
    integer = prove_fully_integer(lite, layers=layers) if promised.fully_integer else None
    graph = FileGraph(lite, layers)
    weights = list(graph.list_weights())
    faults = [
        *_find_input_output_faults(lite, promised),
        *_find_weight_faults(graph, promised, weights),
        *_find_bias_faults(graph, promised),
        *_find_activation_faults(graph, promised),
    ]
    if promised.weights == "float16":
        faults += _find_overflows(graph, weights)
    if faults:
        raise ConversionError(
            f"The file is not what target {target!r} promises: {join_faults(faults)}"
        )
    if weights and all(weight.tensor.dtype != promised.weights for weight in weights):
        raise _no_weight_error(graph, promised, weights[0])
    if promised.block_size and not any(weight.tensor.block_size for weight in weights):
        raise ConversionError(
            f"No Dense layer of the file has one scale per {promised.block_size} weights, which "
            f"target {target!r} promises: that takes four units or more, inputs divisible by "
            f"{promised.block_size}, and no activation fused into the layer. "
            "Convert to 'int4' instead."
        )
    return TargetProof(
        target=target,
        weights=_count(weight.tensor.dtype for weight in weights),
        biases=_count(tensor.dtype for _, tensor in graph.list_biases()),
        activations=_count(tensor.dtype for _, tensor in graph.list_activations()),
        inputs=tuple(spec.to_dict() for spec in lite.inputs),
        outputs=tuple(spec.to_dict() for spec in lite.outputs),
        kept=tuple(w.to_dict() for w in weights if w.tensor.dtype != promised.weights),
        invoked_with=integer.invoked_with if integer else _run(lite, target),
        size=len(lite.content),
        integer=integer,
    )


def _find_input_output_faults(lite: LiteModel, promised: Target) -> Iterator[str]:
    for role, specs in (("input", lite.inputs), ("output", lite.outputs)):
        for spec in specs:
            real = spec.scale is not None or spec.dtype.startswith("float")
            if real and spec.dtype not in promised.io_dtypes:
                expected = " or ".join(promised.io_dtypes)
                yield f"the {role} {spec.name!r} is {spec.dtype} (expected {expected})"


def _find_weight_faults(
    graph: FileGraph, promised: Target, weights: Iterable[Weight]
) -> Iterator[str]:
    for weight in weights:
        tensor, operator = weight.tensor, weight.operator
        small = tensor.dtype == "float32" and prod(tensor.shape) < promised.min_elements
        if operator.name in promised.checked and tensor.dtype != promised.weights and not small:
            yield f"{_describe(graph, weight)} (expected {promised.weights})"
        elif (
            promised.block_size
            and operator.name == "FULLY_CONNECTED"
            and fits_blocks(operator, tensor, promised.block_size)
            and tensor.block_size != promised.block_size
        ):
            yield (
                f"{_describe(graph, weight)} with one scale per channel (expected one per "
                f"{promised.block_size} weights)"
            )


def _find_bias_faults(graph: FileGraph, promised: Target) -> Iterator[str]:
    # The biases of a float file are small: they may be float16 or stay float32.
    for operator, tensor in graph.list_biases() if promised.fully_integer else ():
        if tensor.dtype != promised.biases:
            fault = graph.describe(operator, "reads", tensor, "bias")
            yield f"{fault} (expected {promised.biases})"


def _find_activation_faults(graph: FileGraph, promised: Target) -> Iterator[str]:
    allowed = {promised.activations, *promised.io_dtypes}
    for operator, tensor in graph.list_activations():
        # Rows gathered from a table keep its dtype.
        gathered = operator.name == "GATHER" and tensor.dtype == promised.weights
        if is_real(tensor) and tensor.dtype not in allowed and not gathered:
            fault = graph.describe(operator, "writes", tensor, "tensor")
            yield f"{fault} (expected {promised.activations})"


def _find_overflows(graph: FileGraph, weights: Iterable[Weight]) -> Iterator[str]:
    """Yields a phrase for each weight that the converter clipped to float16's largest number."""
    largest = np.finfo(np.float16).max
    interpreter = graph.lite.interpreter(xnnpack=False)
    for weight in weights:
        tensor = weight.tensor
        if tensor.dtype == "float16" and tensor.subgraph == 0:
            values = np.abs(interpreter.get_tensor(tensor.index))
            if not (values < largest).all():
                yield (
                    f"{_describe(graph, weight)}, some beyond float16's largest number, "
                    f"{largest:.0f}"
                )


def _describe(graph: FileGraph, weight: Weight) -> str:
    return graph.describe(weight.operator, "reads", weight.tensor, "weights")


def _no_weight_error(graph: FileGraph, promised: Target, first: Weight) -> ConversionError:
    why = (
        f"Those of fewer than {promised.min_elements:,} elements stay as they are, and it has "
        "no others."
        if promised.min_elements
        else f"It has none in {' or '.join(sorted(promised.checked))}."
    )
    return ConversionError(
        f"No weight of the file is {promised.weights}, which target {promised.name!r} promises; "
        f"the first is: {_describe(graph, first)}. {why} Convert to 'int8' or 'float16' instead."
    )


def _run(lite: LiteModel, target: str) -> str:
    try:
        return run_once(lite)
    except ModelFileError as error:
        raise ConversionError(
            f"The {target} file cannot be run by LiteRT: {error} Convert to another target."
        ) from error


def _count(dtypes: Iterable[str]) -> dict[str, int]:
    return dict(Counter(dtypes).most_common())
