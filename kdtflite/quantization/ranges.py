"""Activation ranges from data, before the first training step.

TFMOT starts every range at ±6 (the input's at 0..0) and moves it by an average with decay 0.999,
without a correction for the start: a newly wrapped model is useless, and its ranges are still far
off after hundreds of steps. One pass over representative data puts every range where it belongs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.errors import DataError
from kdtflite.models.keras_internals import replace_attributes
from kdtflite.models.layer_names import strip_prefix
from kdtflite.progress import say
from kdtflite.quantization.calibration import MinMax
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.quantizers import ActivationQuantizer, LearnedQuantizer
from kdtflite.quantization.quantizers.base import NARROWEST

__all__ = ["calibrate_ranges", "list_ranged_layers", "read_input_ranges", "suspend_rounding"]

_LISTED = 8


def calibrate_ranges(
    model: keras.Model, batches: Iterable[Any], observer: Callable[[], Any] | None = None
) -> int:
    """Sets the ranges of all fake quantization in `model`.

    An activation's range is the one that its observer chooses for the float activation over all
    batches, by default from the least to the greatest value. It includes 0.

    Args:
        model: A model with fake quantization.
        batches: Inputs as the model takes them, shape (batch, ...).
        observer: Makes the observer of one activation, which gets `update(values)` for each batch
            and then `range()`.

    Returns:
        The number of activation ranges that were set.

    Raises:
        DataError: There is no batch, or an activation is NaN or infinite.
    """
    layers = list_ranged_layers(model)
    observers = {id(layer.quantizer): (observer or MinMax)() for layer in layers}
    names = {id(layer.quantizer): strip_prefix(layer.name) for layer in layers}

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
    with suspend_rounding(model, observe):
        for batch in batches:
            model(batch, training=False)
            count += 1
    if not count:
        raise DataError("Expected at least one batch to calibrate on. Received: none.")
    dead: list[str] = []
    for layer in layers:
        least, greatest = observers[id(layer.quantizer)].range()
        least, greatest = min(least, 0.0), max(greatest, 0.0)
        if greatest - least < NARROWEST:
            dead.append(names[id(layer.quantizer)])
            # Whatever rounds to 0 on the narrowest range does so on a wide one, which XNNPACK takes
            # from any layer: it refuses a convolution if a step of the input times one of the
            # kernel is 256 steps of the output or more.
            is_zero = greatest - least < NARROWEST / 510
            greatest = 1.0 if is_zero else least + NARROWEST
        layer.quantizer.set_range(layer.range, least, greatest)
    if dead:
        say(
            f"{len(dead)} of {len(layers)} activations are always zero, or nearly, on the "
            f"representative data; their ranges are widened: {', '.join(dead[:_LISTED])}"
            f"{', ...' if len(dead) > _LISTED else ''}."
        )
    return len(layers)


def list_ranged_layers(model: keras.Model) -> list[Any]:
    """Returns the layers of `model` whose rounding has a range from data, in the model's order."""
    return [
        layer
        for layer in model.layers
        if isinstance(layer, FakeQuantize | FakeQuantized)
        and isinstance(layer.quantizer, ActivationQuantizer | LearnedQuantizer)
    ]


def suspend_rounding(
    model: keras.Model, observe: Callable[[Any, Any], None] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Makes the fake quantization of `model` pass values on unrounded while the block runs.

    Args:
        model: A model with fake quantization. Call it directly: the function that `predict` has
            compiled before still rounds.
        observe: Called with the quantizer and the values of each activation.
    """
    layers = [x for x in model.layers if isinstance(x, FakeQuantize | FakeQuantized)]
    quantizers = [layer.quantizer for layer in layers if layer.quantizer is not None]
    for layer in layers:
        for quantizer in getattr(layer, "weight_quantizers", {}).values():
            quantizers.append(quantizer)
    return replace_attributes(quantizers, passes=True, observe=observe)


def read_input_ranges(model: keras.Model) -> dict[str, tuple[float, float]]:
    """Returns the range of each fake-quantized input that has one, by the input's name."""
    ranges = {}
    for layer in list_ranged_layers(model):
        before = layer.inbound_nodes[0].inbound_layers if layer.inbound_nodes else None
        found = layer.quantizer.read_range(layer.range)
        if isinstance(before, keras.layers.InputLayer) and found is not None:
            ranges[before.name] = found
    return ranges
