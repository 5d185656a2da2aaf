"""Which layer's quantization costs the most: each layer of a student rounded alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError, choose
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.inspect import find_output_kind
from kdtflite.models.keras_internals import replace_attributes
from kdtflite.models.layer_names import find_origins, strip_prefix
from kdtflite.progress import track
from kdtflite.quantization.bias_correction import check_calibrated
from kdtflite.quantization.inputs import batch_inputs
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.output_error import Array, compute_log_softmax, compute_outputs
from kdtflite.quantization.ranges import suspend_rounding
from kdtflite.quantization.stripping import strip
from kdtflite.results import Axes, Result, Table, make_table, plot_bars

__all__ = ["LayerSensitivity", "Sensitivity", "measure_sensitivity"]

_MEASURES = ("kl", "mse")
_WHAT = ("all", "weights", "activations")
_TITLES = {"kl": "KL divergence in nats", "mse": "mean squared difference"}
# An int8 probability of 0 stands for everything below half a step of 1/256.
_LEAST_PROBABILITY = 2.0**-9


@dataclass(frozen=True)
class LayerSensitivity:
    """What rounding one layer alone changes.

    Attributes:
        layer: Path of the user's layer ("backbone/conv"), or name of an input.
        kind: Its class.
        change: Change of the model's output against that without any rounding: KL divergence
            in nats, or mean squared difference.
        accuracy: Accuracy with this layer rounded, or None without labels.
    """

    layer: str
    kind: str
    change: float
    accuracy: float | None


@dataclass(frozen=True)
class Sensitivity(Result):
    """How much the rounding of each layer changes a model's output.

    Attributes:
        layers: The layers, the costliest first.
        measure: "kl" or "mse".
        what: What was rounded in each layer: "all", "weights" or "activations".
        together: The change when all layers are rounded so.
        accuracy: Accuracy when all layers are rounded so, or None without labels.
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

    def to_table(self) -> Table:
        """Returns the layers as a rich table, the costliest first."""
        from rich import box
        from rich.text import Text

        rows = []
        for layer in self.layers:
            accuracy = () if layer.accuracy is None else (f"{layer.accuracy:.2%}",)
            rows.append((Text(layer.layer), layer.kind, f"{layer.change:.3g}", *accuracy))
        numbers = ["change"] if self.accuracy is None else ["change", "accuracy"]
        table = make_table(
            rows, text=("layer", "class"), numbers=numbers, box=box.SIMPLE_HEAD, pad_edge=False
        )
        table.columns[0].max_width = 50
        return table

    def summary(self) -> str:
        """Returns what was measured and the change by all layers together, in one or two lines."""
        rounded = {"all": "", "weights": " of weights", "activations": " of activations"}
        text = (
            f"Change of the output ({_TITLES[self.measure]}) on {self.samples:,} samples by the "
            f"rounding{rounded[self.what]} of one layer alone; of all together: "
            f"{self.together:.3g}."
        )
        if self.accuracy is None or self.float_accuracy is None:
            return text
        return (
            f"{text}\nAccuracy without rounding {self.float_accuracy:.2%}, with all "
            f"{self.accuracy:.2%}."
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the costliest layers as bars, thirty at most; the costliest is on top.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        label = f"Change of the output by this layer alone ({_TITLES[self.measure]})"
        return plot_bars([(layer.layer, layer.change) for layer in self.layers], label, ax)


@check_arguments
def measure_sensitivity(
    model: Any,
    data: Any,
    labels: Any = None,
    *,
    measure: str | None = None,
    what: str = "all",
    samples: int = 256,
    progress: bool = True,
) -> Sensitivity:
    """Rounds each layer of a quantization-aware model alone, and measures what that changes.

    As in ZeroQ (Cai et al., arXiv 2001.00281), with p the model's probabilities without any
    rounding and q those with the weights and the output of one layer rounded:

        change = mean over samples of Σ p (log p - log q)

    The costliest layers are those to leave in float, to widen or to train longer. The changes of
    single layers need not add up to that of all. The model is the same afterwards.

    Args:
        model: A model from `quantize_aware`, its ranges set.
        data: Samples as `kdtflite.data.take_samples` takes them.
        labels: Class of each sample, shape (samples,), to measure the accuracy too. Then `data`
            is an array, or a dict of arrays by input name.
        measure: "kl" for a classifier, "mse" for the mean squared difference of outputs; None
            takes "kl" for one output of two or more logits or probabilities.
        what: What to round in each layer: "all", or its "weights" or "activations" alone.
        samples: The largest number of samples to use, evenly spread over arrays.
        progress: Show progress.

    Raises:
        UnsupportedModelError: The model is not quantization-aware, or `measure` is "kl" and it is
            not a classifier.
        ConfigurationError: An unknown option, or ranges that are not set.
        DataError: Samples or labels that do not fit, or outputs that are not finite.

    Example:
        >>> import kdtflite
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense")])
        >>> x = np.linspace(-1, 1, 64, dtype="float32").reshape(32, 2)
        >>> student = kdtflite.quantize_aware(model, x)
        >>> found = kdtflite.quantization.measure_sensitivity(student, x, what="weights")
        >>> [layer.layer for layer in found.layers]
        ['dense']
    """
    model = as_tf_keras(model)
    choose(what, _WHAT, what="part of a layer")
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    kind, measure = _resolve_measure(model, measure)
    classes = None
    if labels is not None:
        data, classes = _choose_samples(data, labels, samples, kind)
    batches = list(batch_inputs(model, data, limit=samples, few=0))
    groups = _group_quantizers(model, what)
    everything = [quantizer for _, quantizers in groups.values() for quantizer in quantizers]
    with suspend_rounding(model):
        reference = _compute_finite_outputs(model, batches)
        rows = []
        for layer, (label, quantizers) in track(
            list(groups.items()), "Rounding", quiet=not progress
        ):
            with replace_attributes(quantizers, passes=False):
                outputs = _compute_finite_outputs(model, batches)
            change = _measure_change(reference, outputs, measure, kind)
            rows.append(LayerSensitivity(layer, label, change, _measure_accuracy(outputs, classes)))
        with replace_attributes(everything, passes=False):
            outputs = _compute_finite_outputs(model, batches)
    return Sensitivity(
        layers=tuple(sorted(rows, key=lambda row: -row.change)),
        measure=measure,
        what=what,
        together=_measure_change(reference, outputs, measure, kind),
        accuracy=_measure_accuracy(outputs, classes),
        float_accuracy=_measure_accuracy(reference, classes),
        samples=len(reference[0]),
    )


def _resolve_measure(model: keras.Model, measure: str | None) -> tuple[str, str]:
    """Returns whether the model gives "logits", "probabilities" or "other", and the measure."""
    if measure is not None:
        choose(measure, _MEASURES, what="measure")
    check_calibrated(model)
    kind = "other"
    if len(model.outputs) == 1 and (model.outputs[0].shape[-1] or 0) > 1:
        found = find_output_kind(strip(model))
        kind = found if found in ("logits", "probabilities") else "other"
    if measure == "kl" and kind == "other":
        raise UnsupportedModelError(
            "The measure 'kl' compares the probabilities of a classifier. Expected one output of "
            "logits or probabilities of two or more classes. Received: "
            f"{model.name!r}. Pass measure='mse'."
        )
    return kind, measure or ("mse" if kind == "other" else "kl")


def _choose_samples(data: Any, labels: Any, samples: int, kind: str) -> tuple[Any, Array]:
    """Returns evenly spread samples and their classes."""
    if kind == "other":
        raise DataError(
            "Expected no labels: they are for the accuracy of a classifier of two or more classes. "
            "Received: labels for another model. Leave them out."
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


def _group_quantizers(model: keras.Model, what: str) -> dict[str, tuple[str, list[Any]]]:
    """Returns the class and the quantizers of each of the user's layers, in the model's order."""
    origins = find_origins(model)
    layers = {layer.name: layer for layer in model.layers}
    report = getattr(model, "quantization", None)
    kinds = {row.layer: row.kind for row in report.layers} if report is not None else {}
    groups: dict[str, tuple[str, list[Any]]] = {}
    for layer in model.layers:
        if not isinstance(layer, FakeQuantize | FakeQuantized):
            continue
        quantizers = list(getattr(layer, "weight_quantizers", {}).values())
        if what == "activations":
            quantizers = []
        if what != "weights" and layer.quantizer is not None:
            quantizers.append(layer.quantizer)
        if not quantizers:
            continue
        name = strip_prefix(layer.name)
        path = origins.get(name, name)
        rounded = layer.layer if isinstance(layer, FakeQuantized) else layers.get(name, layer)
        kind = kinds.get(path, type(rounded).__name__)
        groups.setdefault(path, (kind, []))[1].extend(quantizers)
    return groups


def _compute_finite_outputs(model: keras.Model, batches: list[Any]) -> list[Array]:
    outputs = [output.astype(np.float64) for output in compute_outputs(model, batches)]
    if not all(np.isfinite(output).all() for output in outputs):
        raise DataError(
            f"Expected finite outputs. Received: NaN or infinity from {model.name!r}. Check its "
            "weights and the samples' scaling."
        )
    return outputs


def _measure_change(reference: list[Array], outputs: list[Array], measure: str, kind: str) -> float:
    if measure == "mse":
        squares = sum(float(((a - b) ** 2).sum()) for a, b in zip(reference, outputs, strict=True))
        return squares / sum(output.size for output in outputs)
    p, q = (_as_log_probabilities(x[0], kind) for x in (reference, outputs))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _as_log_probabilities(outputs: Array, kind: str) -> Array:
    if kind == "probabilities":
        outputs = np.log(np.maximum(outputs, _LEAST_PROBABILITY))
    return compute_log_softmax(outputs)


def _measure_accuracy(outputs: list[Array], classes: Array | None) -> float | None:
    return None if classes is None else float((outputs[0].argmax(axis=-1) == classes).mean())
