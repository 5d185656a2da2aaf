"""sensitivity: what the rounding of each layer alone costs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tf_keras as keras
from rich.table import Table

from kdtflite.errors import ConfigurationError, choose
from kdtflite.progress import track
from kdtflite.quantization.bias_correction import check_calibrated
from kdtflite.quantization.inputs import ALL_SAMPLES, input_batches
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.measures import MEASURES, accuracy_of, outputs_of, split_labels
from kdtflite.quantization.ranges import rounding_off
from kdtflite.tables import as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]

_PARTS = ("activations", "both", "weights")
_SHOWN = 30
_INCHES = 4.2  # as wide as the report's plots
_COLOUR = "#2361ad"


@dataclass(frozen=True)
class LayerSensitivity:
    """What comes of rounding one layer, everything else in float.

    Attributes:
        layer: Its name; an input's, where the input is what is rounded.
        rounds: "weights", "activations" or "both": what of it is rounded.
        error: How far the model's outputs are from the float ones, by the measure.
        score: The metric's value, where labels were given.
    """

    layer: str
    rounds: str
    error: float
    score: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found.

    Attributes:
        layers: Every rounded layer, the worst first: by score where there are labels, by error
            else and among equals.
        measure: Name of the measure of the errors.
        together: The same of all of them rounded at once, as the file will be.
        in_float: The metric's value without any rounding, where labels were given.
    """

    layers: tuple[LayerSensitivity, ...]
    measure: str
    together: LayerSensitivity
    in_float: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain values for JSON."""
        return asdict(self)

    def summary(self) -> str:
        """Returns the layers as a table."""
        table = Table(title="Sensitivity of layers to rounding, each alone, the worst first")
        for column in ("layer", "rounds", self.measure, "score"):
            table.add_column(
                column,
                justify="left" if column in ("layer", "rounds") else "right",
                overflow="fold",
            )
        rows = [*self.layers, self.together]
        for i, row in enumerate(rows):
            score = "" if row.score is None else f"{row.score:.4f}"
            table.add_row(
                row.layer, row.rounds, f"{row.error:.3g}", score, end_section=i == len(rows) - 2
            )
        if self.in_float is not None:
            table.add_row("(none)", "", "0", f"{self.in_float:.4f}")
        return as_text(table)

    def plot(self) -> Figure:
        """Returns bars of the errors of the worst layers, on a logarithmic axis."""
        from matplotlib.figure import Figure

        rows = [row for row in self.layers if row.error > 0][:_SHOWN]
        figure = Figure(figsize=(_INCHES, 1 + 0.2 * max(len(rows), 1)), layout="constrained")
        axes = figure.subplots()
        axes.barh([row.layer for row in rows], [row.error for row in rows], color=_COLOUR)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        if rows:
            axes.set_xscale("log")
        axes.tick_params(labelsize=8)
        axes.set_xlabel(f"Error with this layer alone rounded ({self.measure})", fontsize=9)
        return figure


def sensitivity(
    student: keras.Model,
    data: Any,
    *,
    measure: str = "mse",
    rounds: str = "both",
    metric: Callable[[Any, list[Any]], float] = accuracy_of,
    samples: int = 256,
) -> Sensitivity:
    """Measures how the outputs suffer from each layer's rounding, all other layers in float.

    Labels are not needed: the float model is what the outputs are compared with. A layer whose
    output a follower rounds (a convolution whose batch normalization and ReLU are folded into
    it) has its weights under its own name and its output under the follower's.

    Args:
        student: A quantization-aware model, its ranges set. It is not changed.
        data: Samples as `kdtflite.data.representative` takes them; or with labels, a pair (x, y)
            or a split, y class indices of shape (samples,).
        measure: "mse", the mean squared difference as a share of the outputs' mean square; or
            "kl", the divergence of the class probabilities in nats.
        rounds: "both", or only the "weights" or "activations" of each layer.
        metric: With labels: what scores them and the list of the model's outputs, more is better.
        samples: The most samples to use; of labelled ones all are. One pass over them is made
            for every layer.

    Raises:
        UnsupportedModelError: The model holds no fake quantization of kdtflite's.
        ConfigurationError: Its ranges are not set, or there is no such measure.
        DataError: The data do not fit the model, or the labels are not one class a sample.

    Example:
        print(sensitivity(student, x_train).summary())
    """
    check_calibrated(student)
    compare = MEASURES[choose(measure, MEASURES, what="measure of output error")]
    choose(rounds, _PARTS, what="part of layers to round")
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    x, labels = split_labels(data)
    limit = samples if labels is None else ALL_SAMPLES
    batches = list(input_batches(student, x, limit=limit))
    parts = _parts(student, rounds)
    with rounding_off(student):
        wanted = outputs_of(student, batches)

    def measured(name: str, what: str, quantizers: list[Any]) -> LayerSensitivity:
        with rounding_off(student), _rounding(quantizers):
            outputs = outputs_of(student, batches)
        score = None if labels is None else float(metric(labels, outputs))
        return LayerSensitivity(name, what, compare(wanted, outputs), score)

    rows = [measured(*part) for part in track(parts, "Rounding layers", total=len(parts))]
    rows.sort(key=lambda row: (row.score or 0.0, -row.error))
    everything = [quantizer for *_, quantizers in parts for quantizer in quantizers]
    together = measured("(all)", rounds, everything)
    in_float = None if labels is None else float(metric(labels, wanted))
    return Sensitivity(tuple(rows), measure, together, in_float)


def _parts(student: keras.Model, rounds: str) -> list[tuple[str, str, list[Any]]]:
    """Returns the name of each rounded layer, what of it is rounded, and its quantizers."""
    parts = []
    for layer in student.layers:
        if not isinstance(layer, FakeQuantize | FakeQuantized):
            continue
        weights = list(getattr(layer, "weight_quantizers", {}).values())
        output = [] if layer.quantizer is None else [layer.quantizer]
        found = {"weights": weights, "activations": output, "both": weights + output}[rounds]
        if found:
            what = "both" if weights and output else "weights" if weights else "activations"
            what = what if rounds == "both" else rounds
            parts.append((layer.name.removeprefix("quant_"), what, found))
    return parts


@contextlib.contextmanager
def _rounding(quantizers: list[Any]) -> Iterator[None]:
    """Lets these quantizers round while the block runs."""
    for quantizer in quantizers:
        quantizer.passes = False
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.passes = True
