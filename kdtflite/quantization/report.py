"""Which layers are trained quantization-aware, which are calibrated, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import tf_keras as keras
from rich.text import Text

from kdtflite.models.keras_internals import set_output_names
from kdtflite.models.layer_names import strip_prefix
from kdtflite.progress import say
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.ranges import calibrate_ranges, list_ranged_layers
from kdtflite.quantization.statistics import find_unsettled, use_batch_statistics
from kdtflite.quantization.watching import watch_training
from kdtflite.results import Axes, Result, Table, make_table, plot_bars

__all__ = [
    "LayerQuantization",
    "QuantizationAwareness",
    "attach_awareness",
    "list_rounded_layers",
    "restore_awareness",
]


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer becomes integer.

    Attributes:
        layer: Name of the layer in the float model.
        kind: Its class.
        how: "trained" (fake-quantized in training), "folded" (into a neighbor, or without
            arithmetic of its own), "calibrated" (from representative data at conversion), or
            "float" (no integer kernel computes it: `convert` refuses it for an integer target).
        why: The reason, where it is calibrated or float.
    """

    layer: str
    kind: str
    how: str
    why: str = ""


@dataclass
class QuantizationAwareness(Result):
    """What `quantize_aware` did, as `model.quantization`.

    Attributes:
        layers: Every layer of the float model, in its order.
        model: The quantization-aware model.
        origin: The path ("outer/inner") of the float model's layer by the name of each layer that
            it was rewritten into. Empty for a model from a file, which does not keep the float
            model's layers.
    """

    layers: tuple[LayerQuantization, ...]
    model: Any = field(repr=False)
    origin: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def calibrated(self) -> bool:
        """Whether the activation ranges were set: from data, in training, or by loaded weights."""
        return all(
            layer.quantizer.read_range(layer.range) for layer in list_ranged_layers(self.model)
        )

    def calibrate(
        self,
        batches: Iterable[Any],
        observer: Callable[[], Any] | None = None,
        *,
        trains: bool = True,
    ) -> None:
        """Sets every activation range from batches of inputs, shape (batch, ...) each.

        Where most moving statistics of batch normalization are far from those of the data, as in an
        untrained model, that is reported, and ranges that training does not move are calibrated
        with the statistics of each batch, as training computes.

        Args:
            batches: The inputs.
            observer: Makes the observer that chooses a range, as `get_calibration` returns it;
                min-max by default.
            trains: The model will be trained. Without, ranges are those of inference.
        """
        batches = list(batches)
        calibrate_ranges(self.model, batches, observer)
        unsettled = find_unsettled(self.model, batches[0]) if trains else []
        if not unsettled:
            return
        still = [x for x in list_ranged_layers(self.model) if not x.quantizer.moving]
        say(
            f"{len(unsettled)} batch normalizations hold statistics far from those of the data "
            f"({unsettled[0]} first): the model was trained for a few steps, or not at all. "
            + (
                "The ranges are calibrated with the statistics of each batch, as training uses "
                "them. "
                if still
                else "Training begins the ranges anew with its first batch. "
            )
            + "Evaluation and conversion are sensible once the statistics have settled."
        )
        if still:
            with use_batch_statistics(self.model):
                calibrate_ranges(self.model, batches, observer)

    def to_dict(self) -> dict[str, Any]:
        """Returns the layers as plain values for JSON."""
        layers = [
            {"class" if key == "kind" else key: value for key, value in asdict(layer).items()}
            for layer in self.layers
        ]
        return {"layers": layers}

    def to_table(self) -> Table:
        """Returns the layers as a rich table with one row per layer."""
        rows = ((Text(layer.layer), layer.kind, layer.how, layer.why) for layer in self.layers)
        title = f"Quantization of {self.model.name}"
        return make_table(rows, text=("layer", "class", "how", "why"), title=title)

    def summary(self) -> str:
        """Returns how many layers are trained, folded and calibrated, or float, in one line."""
        return ", ".join(f"{count} {how}" for how, count in self._count().items())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws how many layers are trained, folded and calibrated, or float, as bars.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        return plot_bars(list(self._count().items()), "Layers", ax)

    def _count(self) -> dict[str, int]:
        count = Counter(layer.how for layer in self.layers)
        kinds = ("trained", "folded", "calibrated", *(["float"] if count["float"] else []))
        return {how: count[how] for how in kinds}


def attach_awareness(
    model: keras.Model, awareness: QuantizationAwareness, output_names: Iterable[str]
) -> None:
    """Makes a model with fake quantization what `quantize_aware` returns.

    Its `fit` ends with a TrainingError when the loss or a weight is no longer finite.

    Args:
        model: The model, which gets the attribute `quantization`.
        awareness: That attribute.
        output_names: The names of the outputs in the float model, by which `compile` takes losses.
    """
    model.quantization = awareness
    set_output_names(model, output_names)
    watch_training(model)


def restore_awareness(model: keras.Model) -> None:
    """Attaches to a quantization-aware model from a file what its own layers show of the report.

    A file keeps the layers that the float model was rewritten into, not the float model's layers.
    """
    rounded = list_rounded_layers(model)
    rows = []
    for layer in model.layers:
        if isinstance(layer, FakeQuantize | keras.layers.InputLayer):
            continue
        inner = layer.layer if isinstance(layer, FakeQuantized) else layer
        how = "trained" if inner.name in rounded else "folded"
        rows.append(LayerQuantization(inner.name, type(inner).__name__, how))
    names = [strip_prefix(name) for name in model.output_names]
    attach_awareness(model, QuantizationAwareness(tuple(rows), model), names)


def list_rounded_layers(model: Any) -> set[str]:
    """Returns the names of the layers whose weights or outputs a model rounds."""
    return {
        strip_prefix(layer.name)
        for layer in model.layers
        if isinstance(layer, FakeQuantize | FakeQuantized)
    }
