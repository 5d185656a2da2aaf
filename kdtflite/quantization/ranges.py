"""Activation ranges from data, before the first training step.

TFMOT starts every range at ±6 (the input's at 0..0) and moves it by an average with decay 0.999
and no correction of its start: a model just wrapped is garbage, and its ranges are still far off
after hundreds of steps. One pass over representative data puts every range where it belongs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.errors import DataError
from kdtflite.progress import say
from kdtflite.quantization.calibration import MinMax
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.quantizers import ActivationQuantizer, LearnedQuantizer

__all__ = ["calibrate_ranges", "input_ranges", "ranged", "rounding_off"]

# XNNPACK refuses a scale below 1e-8 (an activation that is always zero), the plain kernels do
# not. 255 steps of 1e-6 are safely above.
_NARROWEST = 255e-6
_LISTED = 8


def calibrate_ranges(
    model: keras.Model, batches: Iterable[Any], observer: Callable[[], Any] | None = None
) -> int:
    """Sets the ranges of all fake quantization in `model`.

    An activation's range is what its observer finds of the float activation over all batches, the
    least and greatest value unless told otherwise; it includes 0.

    Args:
        model: A model with fake quantization.
        batches: Inputs as the model takes them, shape (batch, ...).
        observer: Makes what looks at one activation: `update(values)` a batch, then `range()`.

    Returns:
        How many activation ranges were set.

    Raises:
        DataError: There is no batch, or an activation is NaN or infinite.
    """
    layers = ranged(model)
    observers = {id(layer.quantizer): (observer or MinMax)() for layer in layers}
    names = {id(layer.quantizer): layer.name.removeprefix("quant_") for layer in layers}

    def observe(quantizer: Any, values: Any) -> None:
        array = values.numpy()
        if not np.isfinite(array).all():
            raise DataError(
                f"The output of layer {names[id(quantizer)]} is NaN or infinite on the "
                "representative data. Expected finite values: check the model's weights and the "
                "data's scaling."
            )
        observers[id(quantizer)].update(array)

    count = 0
    with rounding_off(model, observe):
        for batch in batches:
            model(batch, training=False)
            count += 1
    if not count:
        raise DataError("Expected at least one batch to calibrate on. Received: none.")
    dead: list[str] = []
    for layer in layers:
        least, greatest = observers[id(layer.quantizer)].range()
        least, greatest = min(least, 0.0), max(greatest, 0.0)
        if greatest - least < _NARROWEST:
            dead.append(names[id(layer.quantizer)])
            greatest = least + _NARROWEST
        layer.quantizer.set_range(layer.range, least, greatest)
    if dead:
        say(
            f"{len(dead)} of {len(layers)} activations are always zero on the representative data; "
            f"their ranges are widened: {', '.join(dead[:_LISTED])}"
            f"{', ...' if len(dead) > _LISTED else ''}."
        )
    return len(layers)


def ranged(model: keras.Model) -> list[Any]:
    """Returns the layers of `model` that round by a range from data, in the model's order."""
    return [
        layer
        for layer in model.layers
        if isinstance(layer, FakeQuantize | FakeQuantized)
        and isinstance(layer.quantizer, ActivationQuantizer | LearnedQuantizer)
    ]


@contextlib.contextmanager
def rounding_off(
    model: keras.Model, observe: Callable[[Any, Any], None] | None = None
) -> Iterator[None]:
    """Lets the fake quantization of `model` pass everything on unrounded while the block runs.

    Args:
        model: A model with fake quantization. Call it directly: what `predict` has compiled
            already goes on rounding.
        observe: Called with the quantizer and the values of each activation.
    """
    layers = [x for x in model.layers if isinstance(x, FakeQuantize | FakeQuantized)]
    quantizers = [layer.quantizer for layer in layers if layer.quantizer is not None]
    for layer in layers:
        for quantizer in getattr(layer, "weight_quantizers", {}).values():
            quantizers.append(quantizer)
    before = [(quantizer, quantizer.passes, quantizer.observe) for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.passes, quantizer.observe = True, observe
    try:
        yield
    finally:
        for quantizer, passes, observed in before:
            quantizer.passes, quantizer.observe = passes, observed


def input_ranges(model: keras.Model) -> dict[str, tuple[float, float]]:
    """Returns the range of each fake-quantized input by the input's name, where it was set."""
    ranges = {}
    for layer in ranged(model):
        before = layer.inbound_nodes[0].inbound_layers if layer.inbound_nodes else None
        found = layer.quantizer.range_of(layer.range)
        if isinstance(before, keras.layers.InputLayer) and found is not None:
            ranges[before.name] = found
    return ranges
