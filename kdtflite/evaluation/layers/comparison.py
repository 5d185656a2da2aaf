"""The file and its Keras model run on the same samples, tensor by tensor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.data.representative import InputSpec, representative
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    ModelFileError,
    UnsupportedModelError,
    one_line,
)
from kdtflite.evaluation.latency import delegated_operators
from kdtflite.evaluation.layers.labels import Labels, WithoutTensor
from kdtflite.evaluation.layers.matching import FileValue, Match, inputs_by_name, match
from kdtflite.evaluation.layers.tally import Grid, Tally
from kdtflite.evaluation.layers.trace import Trace, traced
from kdtflite.evaluation.models import as_lite_model
from kdtflite.input_checks import scaling_problems
from kdtflite.litemodel import LiteModel, TensorSpec
from kdtflite.models.as_functional import as_functional
from kdtflite.models.float32 import in_float32
from kdtflite.models.inspect import input_shapes
from kdtflite.progress import say, track
from kdtflite.quantization.naming import user_names
from kdtflite.quantization.strip import is_quantization_aware, strip

__all__ = ["Compared", "Comparison", "compare_tensors"]

_BATCH = 16
# Of two Keras tensors that fit a file's tensor so nearly alike, which are a bias of zeros or a
# ReLU of what was positive apart, the later one is taken: the file's error in dB is at most this
# much less.
_ALIKE = 1.0
# A match by the beginning of a name is taken where the values agree as well, in dB.
_AGREED = 6.0


@dataclass(frozen=True)
class Compared:
    """A tensor of the file beside the tensor of the Keras model that it stands for.

    Attributes:
        layer: Label of the Keras layer that gives it, the last one fused into it.
        kind: The layer's class.
        fused: Labels of the layers that are computed in the same operator before it.
        is_output: Whether it is what the layer gives, rather than something inside it.
        value: The file's tensor.
        tally: How the two differ.
        takes: Indices of the file's tensors that it is computed from, the nearest ones of those
            that were compared.
    """

    layer: str
    kind: str
    fused: tuple[str, ...]
    is_output: bool
    value: FileValue
    tally: Tally
    takes: frozenset[int]


@dataclass(frozen=True)
class Comparison:
    """All tensors that two models have in common.

    Attributes:
        tensors: In the order in which the file computes them.
        without_tensor: The layers whose output is no tensor of the file, in the model's order.
        samples: Number of samples.
        kernels: "XNNPACK" or "built-in": which ran the file.
    """

    tensors: tuple[Compared, ...]
    without_tensor: tuple[WithoutTensor, ...]
    samples: int
    kernels: str


def compare_tensors(
    model: Any,
    lite: Any,
    data: Any,
    *,
    rounding: bool,
    samples: int,
    xnnpack: bool,
    progress: bool,
) -> Comparison:
    """Compares every tensor of a file that a Keras layer computes with what that layer gives.

    Args:
        model: The Keras model that the file was converted from.
        lite: The LiteModel, or the path of a `.tflite`.
        data: Samples, as `kdtflite.data.representative` takes them.
        rounding: Whether the fake quantization of a quantization-aware model rounds.
        samples: The most samples to compare on.
        xnnpack: Run the file with LiteRT's default delegate; False takes the built-in kernels.
        progress: Show progress.

    Raises:
        ConfigurationError: `samples` below 1.
        UnsupportedModelError: `rounding` is asked of a float model.
        DataError: Samples that do not fit, or a layer's output that is NaN or infinite.
        ShapeMismatchError: The file was not converted from this model.
    """
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    keras_model, file = in_float32(as_functional(model)), as_lite_model(lite)
    _refuse_foreign(keras_model)
    aware = is_quantization_aware(keras_model)
    known_as = user_names(keras_model)
    if rounding and not aware:
        raise UnsupportedModelError(
            f"Expected a quantization-aware model, made by kdtflite.quantize_aware. Received: "
            f"{keras_model.name!r}, a float model, which the file cannot equal. Ask "
            "kdtflite.layer_errors how far the file is from it."
        )
    if aware and not rounding:
        keras_model = strip(keras_model)
    shapes = input_shapes(keras_model)
    specs = [
        InputSpec(name, shape[1:], tensor.dtype.name)
        for (name, shape), tensor in zip(shapes.items(), keras_model.inputs, strict=True)
    ]
    given = representative(data, specs, limit=samples, few=0)
    tables: list[_Table] = []

    def choose(trace: Trace) -> list[str]:
        tables.append(_Table(trace, file, known_as, steps=rounding))
        return tables[0].wanted

    compute = traced(keras_model, choose)
    (table,) = tables
    renamed = {table.inputs[name].name: value for name, value in given.samples.items()}
    for problem in scaling_problems(file.inputs, renamed):
        say(problem)
    runner = _FileRunner(file, table.inputs, table.indices, xnnpack=xnnpack)
    batches = list(given.batches(_BATCH))
    for number, batch in enumerate(track(batches, "Comparing layers", quiet=not progress)):
        table.add(compute(batch), runner.run(batch), first=number * _BATCH)
    chosen = table.chosen()
    return Comparison(chosen, table.labels.without_tensor(), len(given), runner.kernels)


def _refuse_foreign(model: keras.Model) -> None:
    for layer in model._flatten_layers(include_self=False):
        if hasattr(layer, "quantize_config"):
            raise UnsupportedModelError(
                f"Expected a float model, or one from kdtflite.quantize_aware. Received: "
                f"{model.name!r}, whose layer {layer.name!r} TFMOT fake-quantizes. Pass the float "
                "model that it was made of."
            )


class _Table:
    """The tensors that two models have in common, and what is counted of each candidate."""

    def __init__(
        self, trace: Trace, lite: LiteModel, known_as: Mapping[str, str], *, steps: bool
    ) -> None:
        self._lite = lite
        self.inputs = inputs_by_name(trace, lite)
        self.labels = Labels(trace, known_as)
        self._rows = [
            _Row(value, pairs, _tallies(value, pairs, steps))
            for pairs in match(trace, lite)
            for value in pairs.values
        ]
        self.wanted = sorted({name for row in self._rows for name in row.tallies})
        self.indices = sorted({row.value.tensor.index for row in self._rows})

    def add(
        self, ours: Mapping[str, np.ndarray], theirs: Mapping[int, np.ndarray], *, first: int
    ) -> None:
        """Counts a batch: tensors of the Keras model by name, of the file by index."""
        for row in self._rows:
            given = theirs[row.value.tensor.index]
            for name in list(row.tallies):
                try:
                    if _alike(ours[name], given):
                        given = given.reshape(ours[name].shape)
                        row.tallies[name].add(ours[name], given, first=first)
                        continue
                except DataError as error:
                    if self.labels.is_output(name):
                        raise DataError(f"Layer {self.labels.label(name)}: {error}") from error
                # Its shape was not known before, or it is of no use: it is not this one.
                del row.tallies[name]

    def chosen(self) -> tuple[Compared, ...]:
        """Returns each of the file's tensors with the candidate that it is."""
        rows = [(row, place) for row in self._rows if (place := row.best()) is not None]
        for row, place in rows:
            self.labels.note(*row.chain(place))
        takes = _nearest(self._lite, {row.value.tensor.index for row, _ in rows})
        return tuple(
            Compared(
                layer=self.labels.label(name := list(row.tallies)[place]),
                kind=self.labels.kind(name),
                fused=self.labels.fused(*row.chain(place)),
                is_output=self.labels.is_output(name),
                value=row.value,
                tally=row.tallies[name],
                takes=takes.get(row.value.tensor.index, frozenset()),
            )
            for row, place in sorted(rows, key=lambda each: each[0].value.place)
        )


@dataclass(frozen=True)
class _Row:
    value: FileValue
    match: Match
    tallies: dict[str, Tally]

    def best(self) -> int | None:
        """Returns which candidate fits best, the last of those that fit alike."""
        tallies = list(self.tallies.values())
        if not tallies:
            return None
        most = min(tally.mse for tally in tallies) * 10 ** (_ALIKE / 10)
        place = max(i for i, tally in enumerate(tallies) if tally.mse <= most)
        return place if self.match.sure or tallies[place].sqnr >= _AGREED else None

    def chain(self, place: int) -> tuple[tuple[str, ...], int]:
        """Returns all that may be fused, and where among it a candidate is."""
        before = self.match.before
        return (*before, *self.tallies), len(before) + place


def _nearest(lite: LiteModel, known: set[int]) -> dict[int, frozenset[int]]:
    """Returns which of the known tensors of a file each tensor is computed from, past all else."""
    found: dict[int, frozenset[int]] = {}
    for operator in lite.operators:
        if operator.subgraph != 0:
            continue
        before = frozenset[int]().union(
            *(
                {index} if index in known else found.get(index, frozenset())
                for index in operator.inputs
            )
        )
        found.update(dict.fromkeys(operator.outputs, before))
    return found


def _alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two tensors hold numbers and have the same shape, sizes of 1 left out."""
    shapes = [[size for size in each.shape[1:] if size != 1] for each in (ours, theirs)]
    numbers = ours.dtype.kind in "biuf" and theirs.dtype.kind in "biuf"
    return numbers and len(ours) == len(theirs) and shapes[0] == shapes[1]


def _tallies(value: FileValue, match: Match, steps: bool) -> dict[str, Tally]:
    grid = _grid(value)
    return {name: Tally(grid, steps=steps) for name in match.candidates}


def _grid(value: FileValue) -> Grid | None:
    tensor = value.tensor
    if len(tensor.scales) != 1 or tensor.dtype not in ("int8", "uint8", "int16"):
        return None
    return Grid(tensor.scales[0], tensor.zero_points[0], tensor.dtype)


class _FileRunner:
    """Runs a file and gives its tensors, those in the middle too."""

    def __init__(
        self,
        lite: LiteModel,
        inputs: Mapping[str, TensorSpec],
        indices: Sequence[int],
        *,
        xnnpack: bool,
    ) -> None:
        self._inputs, self._indices = inputs, indices
        with warnings.catch_warnings():
            # LiteRT warns that this takes memory and is for debugging, which this is.
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
            self._interpreter = lite.interpreter(xnnpack=xnnpack, keep_tensors=True)
        # XNNPACK may take nothing of a file: then the built-in kernels run.
        taken, _ = delegated_operators(self._interpreter)
        self.kernels = "XNNPACK" if taken else "built-in"
        first = next(iter(inputs.values()))
        self._batch = first.shape[0] if first.shape else 1

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
        """Returns the tensors of a batch by index, shape (batch, ...), as the file holds them."""
        count = len(next(iter(batch.values())))
        parts: dict[int, list[np.ndarray]] = {index: [] for index in self._indices}
        for start in range(0, count, self._batch):
            # A file of a fixed batch gets the last sample again where there are too few.
            rows = np.minimum(np.arange(start, start + self._batch), count - 1)
            for name, spec in self._inputs.items():
                self._interpreter.set_tensor(spec.index, spec.quantize(batch[name][rows]))
            try:
                self._interpreter.invoke()
            except (ValueError, RuntimeError) as error:
                raise ModelFileError(f"LiteRT cannot run this file: {one_line(error)}.") from error
            for index in self._indices:
                parts[index].append(self._interpreter.get_tensor(index))
        return {
            index: np.concatenate(values)[:count] if values[0].ndim else np.stack(values)
            for index, values in parts.items()
        }
