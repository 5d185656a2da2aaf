"""Fake quantization of weights and activations on the integer kernels' own grids."""

from __future__ import annotations

from typing import Any

from kdtflite.quantization.quantizers.activations import (
    ActivationQuantizer,
    FixedQuantizer,
    LearnedQuantizer,
)
from kdtflite.quantization.quantizers.base import Quantizer
from kdtflite.quantization.quantizers.weights import LearnedWeightQuantizer, WeightQuantizer

__all__ = [
    "ActivationQuantizer",
    "FixedQuantizer",
    "LearnedQuantizer",
    "LearnedWeightQuantizer",
    "WeightQuantizer",
    "as_config",
    "from_config",
]

_KINDS: dict[str, type[Quantizer]] = {
    kind.__name__: kind
    for kind in (
        ActivationQuantizer,
        FixedQuantizer,
        LearnedQuantizer,
        LearnedWeightQuantizer,
        WeightQuantizer,
    )
}


def as_config(quantizer: Any) -> dict[str, Any] | None:
    """Returns a quantizer as plain values, the same in every file format of Keras."""
    if quantizer is None:
        return None
    return {"kind": type(quantizer).__name__, **quantizer.get_config()}


def from_config(config: dict[str, Any] | None) -> Any:
    """Returns the quantizer of a configuration that `as_config` returned."""
    if config is None:
        return None
    arguments = dict(config)
    return _KINDS[arguments.pop("kind")](**arguments)
