"""mixed_precision: a file with more bits where few cost most."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from kdtflite.arguments import check_arguments
from kdtflite.conversion.convert import convert
from kdtflite.conversion.edge_quantizer import WIDE, EdgeQuantizer
from kdtflite.conversion.inspection import find_layer
from kdtflite.conversion.integer_proof import prove_fully_integer
from kdtflite.conversion.mixed_result import MixedPrecision, MixedStep, narrow_type
from kdtflite.conversion.narrowing import narrow_weights
from kdtflite.data.representative import InputSpec, take_samples
from kdtflite.errors import (
    ConfigurationError,
    ConversionError,
    ModelFileError,
    UnsupportedModelError,
    choose,
)
from kdtflite.lite.flatbuffer import Operator
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.lite.operators import KEEP_SCALE
from kdtflite.models.as_graph import as_graph
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.keras_internals import flatten_layers
from kdtflite.progress import say, track
from kdtflite.quantization.output_error import OUTPUT_ERRORS, measure_accuracy, split_labels
from kdtflite.quantization.stripping import is_quantization_aware, strip

__all__ = ["mixed_precision"]


@check_arguments
def mixed_precision(
    model: Any,
    representative_data: Any,
    *,
    validation: Any = None,
    keep: int | None = None,
    budget_bytes: int | None = None,
    tolerance: float | None = None,
    wide: str = "int16",
    measure: str = "mse",
    io_dtype: str = "int8",
    samples: int = 128,
) -> MixedPrecision:
    """Makes an int8 file in which the activations that suffer most from int8 are wider.

    Or, with wide="int8", a file of int4 weights (as target "int8x4") in which the layers whose
    weights suffer most from four bits have int8 weights. All that follows is then about weights.

    To widen an activation, both the operator that writes it and those that read it compute in 16
    bits (int8 weights, int16 activations, int64 biases) or in float; QUANTIZE operators connect
    them to the int8 ones. First each activation is widened alone, in its own file, and the
    outputs are compared with the float file's. Then the activations are widened one after the
    other, the most helpful ones first, and each that reduces the error stays wide.

    An int16 operator runs in LiteRT's built-in kernels instead of the default delegate, which is
    slower: benchmark the file. With wide="int16" or "int8" the file is proven fully integer; with
    "float32" it has float operators inside.

    Args:
        model: A Keras model in any form that `convert` takes; of a quantization-aware one the
            float weights are used, but with wide="int8" the trained ones. Or, unless for "int8",
            its float file, `convert(model, target="float32")`, as a LiteModel, its bytes or its
            path.
        representative_data: Samples that set the ranges, as `kdtflite.data.take_samples` takes
            them.
        validation: Samples to compare the files on: as `representative_data`, or with labels, a
            pair (x, y) or a split, y class indices of shape (samples,). By default
            `representative_data`.
        keep: The most activations, or weights, to widen.
        budget_bytes: The most bytes the file may have.
        tolerance: Stop at this error; if labels are given, at an accuracy this close to the float
            file's (0.01 is one percentage point).
        wide: "int16" or "float32" activations, or "int8" weights.
        measure: "mse", the mean squared difference as a share of the outputs' mean square; or
            "kl", the divergence of the class probabilities in nats.
        io_dtype: "int8" or "int16" inputs and outputs; only "int8" with wide="int8".
        samples: The most samples of `validation` to compare on; labeled ones are all used.

    Raises:
        ConfigurationError: litert-quantizer is not installed, none of `keep`, `budget_bytes` and
            `tolerance` is given, one is out of range, or the first file is already over budget.
        NotFullyIntegerError: An operator has no integer kernel, or litert-quantizer leaves it in
            float, such as SHAPE, which a Reshape layer makes.
        UnsupportedModelError: The model is of another kind, or a file that is already quantized.
        ConversionError: The converter or litert-quantizer failed.
        DataError: The data do not fit the model.

    Example:
        >>> import kdtflite, numpy as np, tf_keras as keras
        >>> layers = [keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> x = np.random.default_rng(0).random((200, 4), np.float32)
        >>> mixed = kdtflite.mixed_precision(model, x, keep=1)
        >>> list(mixed.ranking), mixed.file.outputs[0].dtype
        (['hidden'], 'int8')
    """
    model = as_lite_model(model) if _is_file(model) else as_tf_keras(model)
    _check_limits(keep, budget_bytes, tolerance, samples)
    choose(wide, (*WIDE, "int8"), what="wider type")
    ends = ("int8",) if wide == "int8" else ("int8", "int16")
    choose(io_dtype, ends, what="type of inputs and outputs")
    if wide == "int8" and isinstance(model, LiteModel):
        raise UnsupportedModelError(
            "Expected a Keras model with wide='int8': its int8 file is made first. Received: "
            f"{model!r}."
        )
    choose(measure, OUTPUT_ERRORS, what="measure of output error")
    float_file, names = _make_float_file(model)
    inputs = [InputSpec(spec.name, spec.sample_shape, spec.dtype) for spec in float_file.inputs]
    maker: EdgeQuantizer | _FourBitFiles
    groups: dict[str, list[Any]]
    if wide == "int8":
        maker = _FourBitFiles(float_file, model, representative_data, names)
        groups = maker.groups
    else:
        maker = EdgeQuantizer(float_file, take_samples(representative_data, inputs))
        groups = dict[str, list[Any]](_group_operators(float_file, names))
    x, labels = split_labels(representative_data if validation is None else validation)
    limit = samples if labels is None else len(labels)
    given = take_samples(x, inputs, limit=limit).samples
    files = _MeasuredFiles(maker, given, labels, measure, wide, io_dtype)
    left: dict[str, str] = {}

    base, first = files.measure("", [])
    if wide != "float32":
        prove_fully_integer(base, layers=names)
    if budget_bytes is not None and first.bytes > budget_bytes:
        raise ConfigurationError(
            f"The file has {first.bytes:,} bytes in {narrow_type(wide)}. Expected budget_bytes of "
            f"more than that. Received: {budget_bytes:,}."
        )
    alone: dict[str, float] = {}
    for name, operators in track(groups.items(), "Widening alone", total=len(groups)):
        try:
            alone[name] = files.measure(name, operators)[1].error
        except (ConversionError, ModelFileError) as error:
            left[name] = str(error)
    ranking = dict(sorted(alone.items(), key=lambda item: item[1]))

    def is_enough(step: MixedStep) -> bool:
        if tolerance is None:
            return False
        if files.accuracy is not None and step.accuracy is not None:
            return step.accuracy >= files.accuracy - tolerance
        return step.error <= tolerance

    file, steps, taken = base, [first], list[Any]()
    for name in track(ranking, "Widening", total=len(ranking)):
        if is_enough(steps[-1]) or (keep is not None and len(steps) > keep):
            break
        together = list(dict.fromkeys([*taken, *groups[name]]))
        try:
            made, step = files.measure(name, together, alone=ranking[name])
        except (ConversionError, ModelFileError) as error:
            left[name] = str(error)
            continue
        over = budget_bytes is not None and step.bytes > budget_bytes
        if not over and step.error < steps[-1].error:
            file, taken = made, together
            steps.append(step)
    if wide != "float32":
        prove_fully_integer(file, layers=names)
    reached = None if tolerance is None else is_enough(steps[-1])
    result = MixedPrecision(
        file, tuple(steps), wide, ranking, left, reached, files.accuracy, measure
    )
    say(result.summary())
    return result


class _FourBitFiles:
    """Makes files of int4 weights, int8 in chosen layers, from one int8 file.

    Attributes:
        file: The float file.
        groups: The names of the weights that can be int4, by layer.
    """

    def __init__(self, file: LiteModel, model: Any, data: Any, names: list[str]) -> None:
        self.file = file
        self._integer = convert(model, data, progress=False)
        self.groups: dict[str, list[Any]] = {}
        for weights in narrow_weights(self._integer.content)[1]:
            self.groups.setdefault(find_layer(weights, names) or weights, []).append(weights)

    def quantize(self, wide: Collection[str], dtype: str, *, io_dtype: str) -> LiteModel:
        """Returns the file with int8 weights of these names, and int4 for all others."""
        del dtype, io_dtype  # int8
        return LiteModel(narrow_weights(self._integer.content, keep=wide)[0])


class _MeasuredFiles:
    """Makes files and measures them against the float file."""

    def __init__(
        self,
        maker: EdgeQuantizer | _FourBitFiles,
        samples: Mapping[str, Any],
        labels: Any,
        measure: str,
        wide: str,
        io_dtype: str,
    ) -> None:
        self.maker, self.samples, self.labels = maker, samples, labels
        self.compare, self.wide, self.io_dtype = OUTPUT_ERRORS[measure], wide, io_dtype
        self.wanted = _compute_outputs(maker.file, samples)
        self.accuracy = None if labels is None else measure_accuracy(labels, self.wanted)

    def measure(
        self, layer: str, operators: list[Any], alone: float | None = None
    ) -> tuple[LiteModel, MixedStep]:
        """Returns the file with these operators or weights wide, and what it measures."""
        file = self.maker.quantize(operators, self.wide, io_dtype=self.io_dtype)
        outputs = _compute_outputs(file, self.samples)
        accuracy = None if self.labels is None else measure_accuracy(self.labels, outputs)
        error = self.compare(self.wanted, outputs)
        size = len(file.content)
        return file, MixedStep(layer, len(operators), size, error, accuracy, alone)


def _compute_outputs(file: LiteModel, samples: Mapping[str, Any]) -> list[Any]:
    outputs = file.predict(samples)
    if not isinstance(outputs, dict):
        return [outputs]
    # By name: the order of the outputs may differ from the float file's.
    return [outputs[name] for name in sorted(outputs)]


def _group_operators(file: LiteModel, names: list[str]) -> dict[str, list[Operator]]:
    """Returns for each inner activation the operators that write and read it, by its layer."""
    operators = [operator for operator in file.operators if not operator.subgraph]
    tensors = {tensor.index: tensor for tensor in file.tensors if not tensor.subgraph}
    outer = {spec.index for spec in (*file.inputs, *file.outputs)}
    root = {index: index for index in tensors}

    def find_root(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    def select_activations(indices: tuple[int, ...]) -> list[int]:
        return [
            index
            for index in indices
            if index >= 0 and tensors[index].dtype == "float32" and not tensors[index].is_constant
        ]

    for operator in operators:
        if operator.name in KEEP_SCALE:
            for written in select_activations(operator.outputs):
                for read in select_activations(operator.inputs):
                    root[find_root(written)] = find_root(read)
    outer_groups = {find_root(index) for index in outer}
    groups: dict[int, list[Operator]] = {}
    for operator in operators:
        for index in select_activations((*operator.outputs, *operator.inputs)):
            group = groups.setdefault(find_root(index), [])
            if operator not in group:
                group.append(operator)
    named: dict[str, list[Operator]] = {}
    for index, group in groups.items():
        if index in outer_groups:
            continue  # computed in the dtype of the inputs and outputs
        name = find_layer(tensors[index].name, names) or tensors[index].name
        while name in named:  # a layer of several operators
            name += "'"
        named[name] = group
    return named


def _is_file(model: Any) -> bool:
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model).endswith(".tflite")
    return isinstance(model, (LiteModel, bytes))


def _make_float_file(model: Any) -> tuple[LiteModel, list[str]]:
    """Returns the float file and the names of its layers."""
    if isinstance(model, LiteModel):
        if any(tensor.dtype in ("int8", "uint8", "int16") for tensor in model.tensors):
            raise UnsupportedModelError(
                "Expected a float file, as convert(model, target='float32') makes it. Received: "
                f"{model!r}, which is already quantized."
            )
        # In "model/relu/Relu;model/conv/Conv2D" the layers' names come second.
        paths = [path.split("/") for t in model.tensors for path in t.name.split(";")]
        return model, list(dict.fromkeys(path[1] for path in paths if len(path) > 2))
    model = as_graph(model)
    if is_quantization_aware(model):
        model = strip(model)
    names = [layer.name for layer in flatten_layers(model)]
    return convert(model, target="float32", pack=False, progress=False), names


def _check_limits(
    keep: int | None, budget_bytes: int | None, tolerance: float | None, samples: int
) -> None:
    if keep is None and budget_bytes is None and tolerance is None:
        raise ConfigurationError(
            "Expected keep=, budget_bytes= or tolerance= to say how far to go. Received: none."
        )
    for name, value, least in (
        ("keep", keep, 0),
        ("budget_bytes", budget_bytes, 1),
        ("tolerance", tolerance, 0),
        ("samples", samples, 1),
    ):
        if value is not None and not value >= least:
            raise ConfigurationError(f"Expected {name} from {least} up. Received: {value}.")
