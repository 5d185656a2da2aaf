"""Which layer's quantization costs the most: each layer of a student rounded alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.representative import InputSpec, representative
from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError, choose
from kdtflite.models.inspect import output_kind
from kdtflite.progress import track
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.naming import origins
from kdtflite.quantization.ranges import ranged, rounding_off
from kdtflite.quantization.strip import is_quantization_aware, strip
from kdtflite.quantization.wrapping import PREFIX
from kdtflite.tables import as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

__all__ = ["LayerSensitivity", "Sensitivity", "sensitivity"]

_BATCH = 64
_MEASURES = ("kl", "mse")
_WHAT = ("all", "weights", "activations")
_TITLES = {"kl": "KL divergence in nats", "mse": "mean squared difference"}
# An int8 probability of 0 stands for all below half a step of 1/256.
_LEAST_PROBABILITY = 2.0**-9
_DRAWN = 30
_COLOUR = "#2361ad"


@dataclass(frozen=True)
class LayerSensitivity:
    """What rounding one layer alone changes.

    Attributes:
        layer: Path of the user's layer ("backbone/conv"), or name of an input.
        kind: Its class.
        change: Change of the student's output against that without any rounding: KL divergence
            in nats, or mean squared difference.
        accuracy: Accuracy with this layer rounded, or None without labels.
    """

    layer: str
    kind: str
    change: float
    accuracy: float | None


@dataclass(frozen=True)
class Sensitivity:
    """How much each layer's rounding changes what a student gives.

    Attributes:
        layers: The layers, the costliest first.
        measure: "kl" or "mse".
        what: What was rounded of each layer: "all", "weights" or "activations".
        together: The change with that of all layers rounded.
        accuracy: Accuracy with that of all layers rounded, or None without labels.
        float_accuracy: Accuracy without rounding, or None without labels.
        samples: Number of samples.
    """

    layers: tuple[LayerSensitivity, ...]
    measure: str
    what: str
    together: float
    accuracy: float | None
    float_accuracy: float | None
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}

    def to_table(self) -> Table:
        """Returns the layers as a rich table, the costliest first."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("layer", max_width=50, overflow="fold")
        table.add_column("class")
        table.add_column("change", justify="right")
        if self.accuracy is not None:
            table.add_column("accuracy", justify="right")
        for layer in self.layers:
            accuracy = () if layer.accuracy is None else (f"{layer.accuracy:.2%}",)
            table.add_row(Text(layer.layer), layer.kind, f"{layer.change:.3g}", *accuracy)
        return table

    def __str__(self) -> str:
        rounded = {"all": "", "weights": " of weights", "activations": " of activations"}
        lines = [
            f"{as_text(self.to_table())}",
            f"Change of the output ({_TITLES[self.measure]}) on {self.samples:,} samples by the "
            f"rounding{rounded[self.what]} of one layer alone; of all together: "
            f"{self.together:.3g}.",
        ]
        if self.accuracy is not None and self.float_accuracy is not None:
            lines.append(
                f"Accuracy without rounding {self.float_accuracy:.2%}, with all "
                f"{self.accuracy:.2%}."
            )
        return "\n".join(lines)

    def draw(self, ax: Axes | None = None) -> Axes:
        """Draws the costliest layers, thirty at most, as bars; the costliest is on top.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        from matplotlib.figure import Figure

        shown = self.layers[:_DRAWN]
        if ax is None:
            # Not pyplot: it would keep the figure alive and may want a display.
            figure = Figure(figsize=(7, 0.9 + 0.22 * len(shown)), layout="constrained")
            ax = figure.subplots()
        places = range(len(shown))
        ax.barh(places, [layer.change for layer in shown], color=_COLOUR)
        # parse_math: a layer called "$5" is no formula.
        ax.set_yticks(places, [layer.layer for layer in shown], parse_math=False)
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_xlabel(f"Change of the output by this layer alone ({_TITLES[self.measure]})")
        return ax

    def plot(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Writes that drawing as a picture (.png, .svg, .pdf) and returns its path.

        Raises:
            ConfigurationError: The path has another ending.
            OutputExistsError: It exists and `overwrite` is False.
        """
        from kdtflite.pictures import save_picture

        return save_picture(self.draw(), path, overwrite=overwrite)


def sensitivity(
    student: keras.Model,
    data: Any,
    labels: Any = None,
    *,
    measure: str | None = None,
    what: str = "all",
    samples: int = 256,
    progress: bool = True,
) -> Sensitivity:
    """Rounds each layer of a quantization-aware student alone, and measures what that changes.

    As in ZeroQ (Cai et al., arXiv 2001.00281), with p the student's probabilities without any
    rounding and q those with one layer's weights and output rounded:

        change = mean over samples of Σ p (log p - log q)

    The costliest layers are those to leave in float, to widen or to train longer. The changes of
    single layers need not add up to that of all. The student is the same afterwards.

    Args:
        student: What `quantize_aware` returned, its ranges set.
        data: Samples as the model takes them, as `kdtflite.data.representative` does.
        labels: Class of each sample, shape (samples,), for the accuracy too. Then `data` is an
            array, or a dict of arrays by input name.
        measure: "kl" for a classifier, "mse" for the mean squared difference of outputs; None
            takes "kl" for one output of two or more logits or probabilities.
        what: Round "all" of a layer, its "weights" or its "activations" alone.
        samples: The most samples to use; of arrays, evenly spread.
        progress: Show progress.

    Raises:
        UnsupportedModelError: The model is not quantization-aware, or "kl" is asked of what is
            no classifier.
        ConfigurationError: An option that is not known, or ranges that no data have set.
        DataError: Samples or labels that do not fit, or outputs that are not finite.

    Example:
        >>> found = kdtflite.quantization.sensitivity(student, test.x, test.y)
        >>> print(found)
    """
    choose(what, _WHAT, what="part of a layer")
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    kind, measure = _checked(student, measure)
    classes = None
    if labels is not None:
        data, classes = _labelled(data, labels, samples, kind)
    inputs = [
        InputSpec(name, tuple(tensor.shape[1:]), tensor.dtype.name)
        for name, tensor in zip(student.input_names, student.inputs, strict=True)
    ]
    given = representative(data, inputs, limit=samples, few=0)
    structure = getattr(student, "_nested_inputs", student.inputs[0])
    batches = [
        tf.nest.pack_sequence_as(structure, [batch[name] for name in student.input_names])
        for batch in given.batches(_BATCH)
    ]
    groups = _groups(student, what)
    everything = [quantizer for _, quantizers in groups.values() for quantizer in quantizers]
    with rounding_off(student):
        reference = _outputs(student, batches)
        rows = []
        for layer, (label, quantizers) in track(
            list(groups.items()), "Rounding", quiet=not progress
        ):
            with _rounding(quantizers):
                outputs = _outputs(student, batches)
            change = _change(reference, outputs, measure, kind)
            rows.append(LayerSensitivity(layer, label, change, _accuracy(outputs, classes)))
        with _rounding(everything):
            outputs = _outputs(student, batches)
    return Sensitivity(
        layers=tuple(sorted(rows, key=lambda row: -row.change)),
        measure=measure,
        what=what,
        together=_change(reference, outputs, measure, kind),
        accuracy=_accuracy(outputs, classes),
        float_accuracy=_accuracy(reference, classes),
        samples=len(given),
    )


def _checked(student: Any, measure: str | None) -> tuple[str, str]:
    """Returns whether the student gives "logits", "probabilities" or "other", and the measure."""
    if measure is not None:
        choose(measure, _MEASURES, what="measure")
    if not isinstance(student, keras.Model) or not is_quantization_aware(student):
        raise UnsupportedModelError(
            f"Expected a model from quantize_aware(). Received: "
            f"{getattr(student, 'name', type(student).__name__)!r}, which has no fake quantization."
        )
    unset = [x.name for x in ranged(student) if x.quantizer.range_of(x.range) is None]
    if unset:
        raise ConfigurationError(
            f"Expected a student whose ranges are set. Received: {student.name!r}, whose layer "
            f"{unset[0].removeprefix(PREFIX)!r} has none yet. Pass representative_data= to "
            "quantize_aware, or call student.quantization.calibrate(batches)."
        )
    kind = "other"
    if len(student.outputs) == 1 and (student.outputs[0].shape[-1] or 0) > 1:
        found = output_kind(strip(student))
        kind = found if found in ("logits", "probabilities") else "other"
    if measure == "kl" and kind == "other":
        raise UnsupportedModelError(
            "The measure 'kl' is of a classifier's probabilities. Expected one output of logits "
            f"or probabilities of two or more classes. Received: {student.name!r}. Pass "
            "measure='mse'."
        )
    return kind, measure or ("mse" if kind == "other" else "kl")


def _labelled(data: Any, labels: Any, samples: int, kind: str) -> tuple[Any, np.ndarray]:
    """Returns evenly spread samples and their classes."""
    if kind == "other":
        raise DataError(
            "Labels are for the accuracy of a classifier of two or more classes. Received: labels "
            "for another model. Leave them out."
        )
    classes = np.asarray(labels)
    arrays = data if isinstance(data, dict) else {"": data}
    lengths = {len(np.asarray(value)) for value in arrays.values()}
    if classes.dtype.kind not in "iu" or classes.ndim != 1 or lengths != {len(classes)}:
        raise DataError(
            f"Expected a class for each sample: whole numbers, shape ({max(lengths, default=0)},). "
            f"Received: {classes.dtype} of shape {classes.shape}."
        )
    places = np.linspace(0, len(classes) - 1, min(samples, len(classes))).astype(int)
    chosen = {name: np.asarray(value)[places] for name, value in arrays.items()}
    return (chosen if isinstance(data, dict) else chosen[""]), classes[places]


def _groups(student: keras.Model, what: str) -> dict[str, tuple[str, list[Any]]]:
    """Returns the class and the quantizers of each of the user's layers, in the model's order."""
    known_as = origins(student)
    layers = {layer.name: layer for layer in student.layers}
    report = getattr(student, "quantization", None)
    kinds = {row.layer: row.kind for row in report.layers} if report is not None else {}
    groups: dict[str, tuple[str, list[Any]]] = {}
    for layer in student.layers:
        if not isinstance(layer, FakeQuantize | FakeQuantized):
            continue
        quantizers = list(getattr(layer, "weight_quantizers", {}).values())
        if what == "activations":
            quantizers = []
        if what != "weights" and layer.quantizer is not None:
            quantizers.append(layer.quantizer)
        if not quantizers:
            continue
        name = layer.name.removeprefix(PREFIX)
        path = known_as.get(name, name)
        rounded = layer.layer if isinstance(layer, FakeQuantized) else layers.get(name, layer)
        kind = kinds.get(path, type(rounded).__name__)
        groups.setdefault(path, (kind, []))[1].extend(quantizers)
    return groups


@contextmanager
def _rounding(quantizers: list[Any]) -> Iterator[None]:
    for quantizer in quantizers:
        quantizer.passes = False
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.passes = True


def _outputs(student: keras.Model, batches: list[Any]) -> list[np.ndarray]:
    # Called, not predicted: a compiled function would go on rounding as when it was traced.
    parts = [tf.nest.flatten(student(batch, training=False)) for batch in batches]
    outputs = [
        np.concatenate([np.asarray(x, np.float64) for x in each])
        for each in zip(*parts, strict=True)
    ]
    if not all(np.isfinite(output).all() for output in outputs):
        raise DataError(
            f"Expected finite outputs. Received: NaN or infinity from {student.name!r}. Check its "
            "weights and the samples' scaling."
        )
    return outputs


def _change(
    reference: list[np.ndarray], outputs: list[np.ndarray], measure: str, kind: str
) -> float:
    if measure == "mse":
        squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(reference, outputs, strict=True))
        return squares / sum(output.size for output in outputs)
    p, q = (_log_probabilities(x[0], kind) for x in (reference, outputs))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _log_probabilities(outputs: np.ndarray, kind: str) -> np.ndarray:
    if kind == "probabilities":
        outputs = np.log(np.maximum(outputs, _LEAST_PROBABILITY))
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _accuracy(outputs: list[np.ndarray], classes: np.ndarray | None) -> float | None:
    if classes is None:
        return None
    return float((outputs[0].argmax(axis=-1) == classes).mean())
