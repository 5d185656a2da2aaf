"""mixed_precision: an int8 file, wider where int8 costs most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from kdtflite.conversion.convert import convert
from kdtflite.conversion.edge_quantizer import WIDE, EdgeQuantizer
from kdtflite.conversion.integer_proof import layer_of, prove_fully_integer
from kdtflite.data.representative import InputSpec, representative
from kdtflite.errors import (
    ConfigurationError,
    ConversionError,
    ModelFileError,
    UnsupportedModelError,
    choose,
)
from kdtflite.flatbuffer import Operator
from kdtflite.litemodel import LiteModel
from kdtflite.models.as_functional import as_functional
from kdtflite.progress import say, track
from kdtflite.quantization.measures import MEASURES, accuracy_of, split_labels
from kdtflite.quantization.strip import is_quantization_aware, strip
from kdtflite.tables import as_text

__all__ = ["MixedPrecision", "MixedStep", "mixed_precision"]

# Their output is their input's values, on its scale: both are kept wide or neither.
_SAME_VALUES = frozenset(
    {
        "AVERAGE_POOL_2D",
        "EXPAND_DIMS",
        "GATHER",
        "MAX_POOL_2D",
        "MIRROR_PAD",
        "PAD",
        "PADV2",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "SLICE",
        "SPACE_TO_DEPTH",
        "SPLIT",
        "SQUEEZE",
        "STRIDED_SLICE",
        "TILE",
        "TRANSPOSE",
        "UNPACK",
    }
)


@dataclass(frozen=True)
class MixedStep:
    """A file on the way, or one with a single activation kept wide.

    Attributes:
        layer: The layer whose output is kept wide from this step on; "" for all in int8.
        operators: How many operators of the file are computed wide, for it and those before.
        bytes: Size of the file.
        error: How far its outputs are from the float file's, by the measure.
        accuracy: The share of samples classified rightly, where labels were given.
        alone: The error with this layer's output alone kept wide.
    """

    layer: str
    operators: int
    bytes: int
    error: float
    accuracy: float | None = None
    alone: float | None = None


@dataclass(frozen=True)
class MixedPrecision:
    """What `mixed_precision` made.

    Attributes:
        file: The file.
        steps: From all in int8, the first, to the file, the last.
        wide: "int16" or "float32".
        ranking: The error with each layer's output alone kept wide, the least first.
        left: Why a layer's output could not be kept wide, by layer.
        reached: Whether the tolerance was reached; None where there was none.
        accuracy_in_float: That of the float file, where labels were given.
    """

    file: LiteModel = field(repr=False)
    steps: tuple[MixedStep, ...]
    wide: str
    ranking: dict[str, float]
    left: dict[str, str]
    reached: bool | None = None
    accuracy_in_float: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain values for JSON, without the file's bytes."""
        return {
            "wide": self.wide,
            "steps": [asdict(step) for step in self.steps],
            "ranking": dict(self.ranking),
            "left": dict(self.left),
            "reached": self.reached,
            "accuracy_in_float": self.accuracy_in_float,
            "bytes": len(self.file.content),
        }

    def summary(self) -> str:
        """Returns the steps as a table."""
        table = Table(title=f"From int8, layers' outputs kept in {self.wide}, one after the other")
        table.add_column("layer", overflow="fold")
        for column in ("wide operators", "bytes", "error", "accuracy"):
            table.add_column(column, justify="right")
        for step in self.steps:
            accuracy = "" if step.accuracy is None else f"{step.accuracy:.2%}"
            table.add_row(
                step.layer or "(all in int8)",
                str(step.operators),
                f"{step.bytes:,}",
                f"{step.error:.3g}",
                accuracy,
            )
        return as_text(table)


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
    """Returns an int8 file in which the activations that int8 serves worst are wider.

    An activation is kept wide by computing both the operator that gives it and those that take it
    in 16 bits (int8 weights, int16 activations, int64 biases) or in float; between them and the
    int8 ones stand QUANTIZE operators. First each activation is kept wide alone, in a file of its
    own, and the files' outputs are compared with the float file's. Then the activations are added
    one by one, those first that gave most, and each that makes the error smaller stays.

    An int16 operator runs in LiteRT's built-in kernels, without its default delegate, and slower:
    benchmark the file. With wide="int16" the file is proven fully integer; with "float32" it has
    float operators inside.

    Args:
        model: A tf_keras or Keras 3 model, float, or from `quantize_aware`, whose float weights
            are taken; or its float file, `convert(model, target="float32")`.
        representative_data: Samples that set the ranges, as `kdtflite.data.representative` takes
            them.
        validation: What files are compared on: as `representative_data`, or with labels, a pair
            (x, y) or a split, y class indices of shape (samples,). By default
            `representative_data`.
        keep: The most activations to keep wide.
        budget_bytes: The most bytes of the file.
        tolerance: Stop once the error is within it; where labels are given, once the accuracy is
            within it of the float file's (0.01: a percentage point).
        wide: "int16" or "float32".
        measure: "mse", the mean squared difference as a share of the outputs' mean square; or
            "kl", the divergence of the class probabilities in nats.
        io_dtype: "int8" or "int16" inputs and outputs.
        samples: The most samples of `validation` to compare on; of labelled ones all are used.

    Raises:
        ConfigurationError: ai-edge-quantizer is not installed, none of `keep`, `budget_bytes` and
            `tolerance` is given or one is out of range, or the file is over the budget in int8.
        NotFullyIntegerError: An operator has no integer kernel, or ai-edge-quantizer leaves it in
            float: SHAPE, which a Reshape layer makes, is one.
        UnsupportedModelError: A file that is quantized already.
        ConversionError: The converter or ai-edge-quantizer failed.
        DataError: The data do not fit the model.

    Example:
        mixed = kdtflite.mixed_precision(model, x_train, validation=val, tolerance=0.005)
        print(mixed.summary())
        mixed.file.save("model.tflite")
    """
    _check(keep, budget_bytes, tolerance, samples)
    choose(wide, WIDE, what="wider type")
    choose(io_dtype, ("int8", "int16"), what="type of inputs and outputs")
    choose(measure, MEASURES, what="measure of output error")
    float_file, names = _float_file(model)
    inputs = [
        InputSpec(
            spec.name, tuple(n if n >= 0 else None for n in spec.shape_signature[1:]), spec.dtype
        )
        for spec in float_file.inputs
    ]
    maker = EdgeQuantizer(float_file, representative(representative_data, inputs))
    x, labels = split_labels(representative_data if validation is None else validation)
    limit = samples if labels is None else len(labels)
    given = representative(x, inputs, limit=limit).samples
    files = _Files(maker, given, labels, measure, wide, io_dtype)
    groups, left = _groups(float_file, names), dict[str, str]()

    base, first = files.measured("", [])
    if wide == "int16":
        prove_fully_integer(base, layers=names)
    if budget_bytes is not None and first.bytes > budget_bytes:
        raise ConfigurationError(
            f"The file has {first.bytes:,} bytes in int8. Expected budget_bytes of more than "
            f"that. Received: {budget_bytes:,}."
        )
    alone: dict[str, float] = {}
    for name, operators in track(groups.items(), "Widening alone", total=len(groups)):
        try:
            alone[name] = files.measured(name, operators)[1].error
        except (ConversionError, ModelFileError) as error:
            left[name] = str(error)
    ranking = dict(sorted(alone.items(), key=lambda item: item[1]))

    def enough(step: MixedStep) -> bool:
        if tolerance is None:
            return False
        if files.accuracy is not None and step.accuracy is not None:
            return step.accuracy >= files.accuracy - tolerance
        return step.error <= tolerance

    file, steps, taken = base, [first], list[Operator]()
    for name in track(ranking, "Widening", total=len(ranking)):
        if enough(steps[-1]) or (keep is not None and len(steps) > keep):
            break
        together = list(dict.fromkeys([*taken, *groups[name]]))
        try:
            made, step = files.measured(name, together, alone=ranking[name])
        except (ConversionError, ModelFileError) as error:
            left[name] = str(error)
            continue
        over = budget_bytes is not None and step.bytes > budget_bytes
        if not over and step.error < steps[-1].error:
            file, taken = made, together
            steps.append(step)
    if wide == "int16":
        prove_fully_integer(file, layers=names)
    reached = None if tolerance is None else enough(steps[-1])
    result = MixedPrecision(file, tuple(steps), wide, ranking, left, reached, files.accuracy)
    say(_said(result, measure))
    return result


class _Files:
    """Makes files and measures them against the float file."""

    def __init__(
        self,
        maker: EdgeQuantizer,
        samples: Mapping[str, Any],
        labels: Any,
        measure: str,
        wide: str,
        io_dtype: str,
    ) -> None:
        self.maker, self.samples, self.labels = maker, samples, labels
        self.compare, self.wide, self.io_dtype = MEASURES[measure], wide, io_dtype
        self.wanted = _outputs(maker.file, samples)
        self.accuracy = None if labels is None else accuracy_of(labels, self.wanted)

    def measured(
        self, layer: str, operators: list[Operator], alone: float | None = None
    ) -> tuple[LiteModel, MixedStep]:
        """Returns the file with these operators wide, and what it came to."""
        file = self.maker.quantized(operators, self.wide, io_dtype=self.io_dtype)
        outputs = _outputs(file, self.samples)
        accuracy = None if self.labels is None else accuracy_of(self.labels, outputs)
        error = self.compare(self.wanted, outputs)
        size = len(file.content)
        return file, MixedStep(layer, len(operators), size, error, accuracy, alone)


def _outputs(file: LiteModel, samples: Mapping[str, Any]) -> list[Any]:
    outputs = file.predict(samples)
    if not isinstance(outputs, dict):
        return [outputs]
    # By name: the order of outputs need not be the float file's.
    return [outputs[name] for name in sorted(outputs)]


def _groups(file: LiteModel, names: list[str]) -> dict[str, list[Operator]]:
    """Returns of each activation inside the operators that give and take it, by its layer."""
    operators = [operator for operator in file.operators if not operator.subgraph]
    tensors = {tensor.index: tensor for tensor in file.tensors if not tensor.subgraph}
    ends = {spec.index for spec in (*file.inputs, *file.outputs)}
    root = {index: index for index in tensors}

    def find(index: int) -> int:
        while root[index] != index:
            index = root[index]
        return index

    def activations(indices: tuple[int, ...]) -> list[int]:
        return [
            index
            for index in indices
            if index >= 0 and tensors[index].dtype == "float32" and not tensors[index].is_constant
        ]

    for operator in operators:
        if operator.name in _SAME_VALUES:
            for given in activations(operator.outputs):
                for taken in activations(operator.inputs):
                    root[find(given)] = find(taken)
    at_the_ends = {find(index) for index in ends}
    groups: dict[int, list[Operator]] = {}
    for operator in operators:
        for index in activations((*operator.outputs, *operator.inputs)):
            group = groups.setdefault(find(index), [])
            if operator not in group:
                group.append(operator)
    named: dict[str, list[Operator]] = {}
    for index, group in groups.items():
        if index in at_the_ends:
            continue  # of the inputs' and outputs' own type
        name = layer_of(tensors[index].name, names) or tensors[index].name
        while name in named:  # a layer of several operators
            name += "'"
        named[name] = group
    return named


def _float_file(model: Any) -> tuple[LiteModel, list[str]]:
    """Returns the float file and the names of its layers."""
    if isinstance(model, LiteModel):
        if any(tensor.dtype in ("int8", "uint8", "int16") for tensor in model.tensors):
            raise UnsupportedModelError(
                "Expected a float file, as convert(model, target='float32') makes it. Received: "
                f"{model!r}, which is quantized already."
            )
        # "model/relu/Relu;model/conv/Conv2D": the layers' names come second.
        paths = [path.split("/") for t in model.tensors for path in t.name.split(";")]
        return model, list(dict.fromkeys(path[1] for path in paths if len(path) > 2))
    model = as_functional(model)
    if is_quantization_aware(model):
        model = strip(model)
    names = [layer.name for layer in model._flatten_layers(include_self=False)]
    return convert(model, target="float32", progress=False), names


def _check(
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


def _said(result: MixedPrecision, measure: str) -> str:
    first, last = result.steps[0], result.steps[-1]
    short = "" if result.reached in (None, True) else " The tolerance was not reached."
    return (
        f"Kept {len(result.steps) - 1} of {len(result.ranking)} activations in {result.wide}: "
        f"error ({measure}) {first.error:.3g} in int8, {last.error:.3g} now; {first.bytes:,} and "
        f"{last.bytes:,} bytes.{short}"
    )
