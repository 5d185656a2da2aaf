"""Which layers are trained quantization-aware, which are calibrated, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import tf_keras as keras
from rich.table import Table

from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.ranges import calibrate_ranges, ranged
from kdtflite.tables import as_text

__all__ = ["LayerQuantization", "QuantizationAwareness", "awareness_of"]


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer becomes integer.

    Attributes:
        layer: Name of the layer in the float model.
        kind: Its class.
        how: "trained" (fake-quantized in training), "folded" (into a neighbour, or without
            arithmetic of its own), or "calibrated" (from representative data at conversion).
        why: The reason, where it is calibrated.
    """

    layer: str
    kind: str
    how: str
    why: str = ""


@dataclass
class QuantizationAwareness:
    """What `quantize_aware` did, as `model.quantization`.

    Attributes:
        layers: Every layer of the float model, in its order.
        model: The quantization-aware model.
    """

    layers: tuple[LayerQuantization, ...]
    model: Any = field(repr=False)

    @property
    def calibrated(self) -> bool:
        """Whether the activation ranges were set: from data, in training, or by loaded weights."""
        return all(layer.quantizer.range_of(layer.range) for layer in ranged(self.model))

    def calibrate(self, batches: Iterable[Any], observer: Callable[[], Any] | None = None) -> None:
        """Sets every activation range from batches of inputs, shape (batch, ...) each.

        Args:
            batches: The inputs.
            observer: What chooses a range, as `get_calibration` returns it; min-max by default.
        """
        calibrate_ranges(self.model, batches, observer)

    def summary(self) -> str:
        """Returns the layers as a table."""
        table = Table(title=f"Quantization of {self.model.name}")
        for column in ("layer", "class", "how", "why"):
            table.add_column(column, overflow="fold")
        for layer in self.layers:
            table.add_row(layer.layer, layer.kind, layer.how, layer.why)
        counts = {
            how: sum(layer.how == how for layer in self.layers)
            for how in ("trained", "folded", "calibrated")
        }
        return as_text(table) + "\n" + ", ".join(f"{count} {how}" for how, count in counts.items())

    def to_dict(self) -> list[dict[str, str]]:
        """Returns the layers as plain values for JSON."""
        return [
            {"class" if key == "kind" else key: value for key, value in asdict(layer).items()}
            for layer in self.layers
        ]


def awareness_of(model: Any) -> QuantizationAwareness:
    """Returns what can be told of a quantization-aware model from its layers alone.

    A file keeps the layers that the float model was rewritten into, not the float model's.
    """
    rounded = {
        layer.name.removeprefix("quant_")
        for layer in model.layers
        if isinstance(layer, FakeQuantize | FakeQuantized)
    }
    rows = []
    for layer in model.layers:
        if isinstance(layer, FakeQuantize | keras.layers.InputLayer):
            continue
        inner = layer.layer if isinstance(layer, FakeQuantized) else layer
        how = "trained" if inner.name in rounded else "folded"
        rows.append(LayerQuantization(inner.name, type(inner).__name__, how))
    return QuantizationAwareness(tuple(rows), model)
