"""The file and its Keras model run on the same samples, tensor by tensor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.data.representative import InputSpec, take_samples
from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError
from kdtflite.evaluation.latency import count_delegated_operators
from kdtflite.evaluation.layers.labels import Labels, WithoutTensor
from kdtflite.evaluation.layers.matching import FileValue, Match, match, match_inputs
from kdtflite.evaluation.layers.tally import Grid, Tally
from kdtflite.evaluation.layers.trace import Trace, trace_tensors
from kdtflite.lite.interpreters import invoke
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.lite.samples import find_scaling_problems
from kdtflite.lite.tensors import TensorSpec
from kdtflite.models.as_graph import as_graph
from kdtflite.models.inspect import get_input_shapes
from kdtflite.models.keras_internals import flatten_layers
from kdtflite.models.layer_names import find_user_names
from kdtflite.progress import say, track
from kdtflite.quantization.stripping import is_quantization_aware, strip

__all__ = ["ComparedTensor", "Comparison", "compare_tensors"]

_BATCH = 16
# Of two Keras tensors that fit a file's tensor so nearly alike, which are a bias of zeros or a
# ReLU of what was positive apart, the later one is taken: the file's error in dB is at most this
# much less.
_ALIKE = 1.0
# A match by the beginning of a name is taken where the values agree as well, in dB.
_AGREED = 6.0


@dataclass(frozen=True)
class ComparedTensor:
    """A tensor of the file beside the tensor of the Keras model that it stands for.

    Attributes:
        layer: Label of the Keras layer that computes it, the last one fused into it.
        kind: The layer's class.
        fused: Labels of the layers that the same operator computes before it.
        is_output: Whether it is the layer's output, rather than something inside the layer.
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

    tensors: tuple[ComparedTensor, ...]
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
    """Compares every tensor of a file that a Keras layer computes with the layer's output.

    Args:
        model: The Keras model that the file was converted from.
        lite: The LiteModel, or the path of a `.tflite`.
        data: Samples, as `kdtflite.data.take_samples` takes them.
        rounding: Whether the fake quantization of a quantization-aware model rounds.
        samples: The maximum number of samples.
        xnnpack: Run the file with LiteRT's default delegate; False takes the built-in kernels.
        progress: Show progress.

    Raises:
        ConfigurationError: `samples` below 1.
        UnsupportedModelError: `rounding` is asked of a float model.
        DataError: Samples that do not fit, or a layer's output that is NaN or infinite.
        ShapeMismatchError: The file was not converted from this model.
    """
    keras_model, file = as_graph(model), as_lite_model(lite)
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    _refuse_foreign(keras_model)
    aware = is_quantization_aware(keras_model)
    user_labels = find_user_names(keras_model)
    if rounding and not aware:
        raise UnsupportedModelError(
            f"Expected a quantization-aware model, made by kdtflite.quantize_aware. Received: "
            f"{keras_model.name!r}, a float model, which the file cannot equal. Ask "
            "kdtflite.layer_errors how far the file is from it."
        )
    if aware and not rounding:
        keras_model = strip(keras_model)
    shapes = get_input_shapes(keras_model)
    specs = [
        InputSpec(name, shape[1:], tensor.dtype.name)
        for (name, shape), tensor in zip(shapes.items(), keras_model.inputs, strict=True)
    ]
    given = take_samples(data, specs, limit=samples, few=0)
    tables: list[_CommonTensors] = []

    def choose(trace: Trace) -> list[str]:
        tables.append(_CommonTensors(trace, file, user_labels, steps=rounding))
        return tables[0].wanted

    compute = trace_tensors(keras_model, choose)
    (table,) = tables
    renamed = {table.inputs[name].name: value for name, value in given.samples.items()}
    for problem in find_scaling_problems(file.inputs, renamed):
        say(problem)
    runner = _FileRunner(file, table.inputs, table.indices, xnnpack=xnnpack)
    batches = list(given.batches(_BATCH))
    for number, batch in enumerate(track(batches, "Comparing layers", quiet=not progress)):
        table.add(compute(batch), runner.run(batch), first=number * _BATCH)
    chosen = table.choose_tensors()
    return Comparison(chosen, table.labels.list_without_tensor(), len(given), runner.kernels)


def _refuse_foreign(model: keras.Model) -> None:
    for layer in flatten_layers(model):
        if hasattr(layer, "quantize_config"):
            raise UnsupportedModelError(
                f"Expected a float model, or one from kdtflite.quantize_aware. Received: "
                f"{model.name!r}, whose layer {layer.name!r} TFMOT fake-quantizes. Pass the float "
                "model that it was made from."
            )


class _CommonTensors:
    """The tensors that two models have in common, with the statistics of each candidate."""

    def __init__(
        self, trace: Trace, lite: LiteModel, user_labels: Mapping[str, str], *, steps: bool
    ) -> None:
        self._lite = lite
        self.inputs = match_inputs(trace, lite)
        self.labels = Labels(trace, user_labels)
        self._rows = [
            _Row(value, pairs, _make_tallies(value, pairs, steps))
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
                    if _are_alike(ours[name], given):
                        given = given.reshape(ours[name].shape)
                        row.tallies[name].add(ours[name], given, first=first)
                        continue
                except DataError as error:
                    if self.labels.is_output(name):
                        raise DataError(f"Layer {self.labels.label(name)}: {error}") from error
                # Its shape was unknown before, or its values are useless: not this candidate.
                del row.tallies[name]

    def choose_tensors(self) -> tuple[ComparedTensor, ...]:
        """Returns each of the file's tensors with the candidate that fits it."""
        rows = [(row, place) for row in self._rows if (place := row.find_best()) is not None]
        for row, place in rows:
            self.labels.note(*row.list_fusable(place))
        takes = _find_nearest(self._lite, {row.value.tensor.index for row, _ in rows})
        return tuple(
            ComparedTensor(
                layer=self.labels.label(name := list(row.tallies)[place]),
                kind=self.labels.find_kind(name),
                fused=self.labels.list_fused(*row.list_fusable(place)),
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

    def find_best(self) -> int | None:
        """Returns which candidate fits best; of equally good ones the last."""
        tallies = list(self.tallies.values())
        if not tallies:
            return None
        most = min(tally.mse for tally in tallies) * 10 ** (_ALIKE / 10)
        place = max(i for i, tally in enumerate(tallies) if tally.mse <= most)
        return place if self.match.sure or tallies[place].sqnr >= _AGREED else None

    def list_fusable(self, place: int) -> tuple[tuple[str, ...], int]:
        """Returns all that may be fused, and the position of a candidate among it."""
        before = self.match.before
        return (*before, *self.tallies), len(before) + place


def _find_nearest(lite: LiteModel, known: set[int]) -> dict[int, frozenset[int]]:
    """Returns the nearest known tensors of a file that each tensor is computed from."""
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


def _are_alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two tensors hold numbers and have the same shape, ignoring sizes of 1."""
    shapes = [[size for size in each.shape[1:] if size != 1] for each in (ours, theirs)]
    numbers = ours.dtype.kind in "biuf" and theirs.dtype.kind in "biuf"
    return numbers and len(ours) == len(theirs) and shapes[0] == shapes[1]


def _make_tallies(value: FileValue, match: Match, steps: bool) -> dict[str, Tally]:
    grid = _make_grid(value)
    return {name: Tally(grid, steps=steps) for name in match.candidates}


def _make_grid(value: FileValue) -> Grid | None:
    tensor = value.tensor
    if len(tensor.scales) != 1 or tensor.dtype not in ("int8", "uint8", "int16"):
        return None
    return Grid(tensor.scales[0], tensor.zero_points[0], tensor.dtype)


class _FileRunner:
    """Runs a file and returns its tensors, including intermediate ones."""

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
        taken, _ = count_delegated_operators(self._interpreter)
        self.kernels = "XNNPACK" if taken else "built-in"
        first = next(iter(inputs.values()))
        self._batch = first.shape[0] if first.shape else 1

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
        """Returns the tensors of a batch by index, shape (batch, ...), as the file holds them."""
        count = len(next(iter(batch.values())))
        parts: dict[int, list[np.ndarray]] = {index: [] for index in self._indices}
        for start in range(0, count, self._batch):
            # A fixed batch is filled up with the last sample.
            rows = np.minimum(np.arange(start, start + self._batch), count - 1)
            for name, spec in self._inputs.items():
                self._interpreter.set_tensor(spec.index, spec.quantize(batch[name][rows]))
            invoke(self._interpreter)
            for index in self._indices:
                parts[index].append(self._interpreter.get_tensor(index))
        return {
            index: np.concatenate(values)[:count] if values[0].ndim else np.stack(values)
            for index, values in parts.items()
        }
