"""Activation ranges from data, before the first training step.

TFMOT starts every range at ±6 (the input's at 0..0) and moves it by an average with decay 0.999
and no correction of its start: a model just wrapped is garbage, and its ranges are still far off
after hundreds of steps. One pass over representative data puts every range where it belongs.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import DataError
from kdtflite.progress import say
from kdtflite.quantization.configs import quantizers

__all__ = ["calibrate_ranges", "input_ranges", "range_values", "rounding_off"]

# XNNPACK refuses a scale below 1e-8 (an activation that is always zero), the plain kernels do
# not. 255 steps of 1e-6 are safely above.
_NARROWEST = 255e-6

_LISTED = 8

_lock = threading.Lock()


def calibrate_ranges(model: keras.Model, batches: Iterable[Any]) -> int:
    """Sets the ranges of all fake quantization in `model`.

    An activation's range is the least and greatest value that the float activation takes over
    all batches, and includes 0; a weight's is that of the weight.

    Args:
        model: A model wrapped by TFMOT.
        batches: Inputs as the model takes them, shape (batch, ...).

    Returns:
        How many activation ranges were set.

    Raises:
        DataError: There is no batch, or an activation is NaN or infinite.
    """
    seen: dict[Any, tuple[Any, Any, float, float]] = {}

    def observe(quantizer: Any, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        del quantizer, training, kwargs
        values = inputs.numpy()
        low, high = weights["min_var"], weights["max_var"]
        before = seen.get(low.ref(), (low, high, 0.0, 0.0))
        seen[low.ref()] = (
            low,
            high,
            min(before[2], float(np.min(values, initial=0.0))),
            max(before[3], float(np.max(values, initial=0.0))),
        )
        return inputs

    count = 0
    with rounding_off(observe):
        for batch in batches:
            model(batch, training=False)
            count += 1
    if not count:
        raise DataError("Expected at least one batch to calibrate on. Received: none.")
    _set_weight_ranges(model)
    dead: list[str] = []
    for low, high, least, greatest in seen.values():
        name = low.name.split("/")[0].removeprefix("quant_")
        if not np.isfinite([least, greatest]).all():
            raise DataError(
                f"The output of layer {name} is NaN or infinite on the representative data. "
                "Expected finite values: check the model's weights and the data's scaling."
            )
        if greatest - least < _NARROWEST:
            dead.append(name)
            greatest = least + _NARROWEST
        low.assign(np.full(low.shape, least, np.float32))
        high.assign(np.full(high.shape, greatest, np.float32))
    if dead:
        say(
            f"{len(dead)} of {len(seen)} activations are always zero on the representative data; "
            f"their ranges are widened: {', '.join(dead[:_LISTED])}"
            f"{', ...' if len(dead) > _LISTED else ''}."
        )
    return len(seen)


def _pass_on(quantizer: Any, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
    del quantizer, training, weights, kwargs
    # A tensor: the wrapper sets what comes back as the layer's kernel, and Keras would count a
    # variable set there among the layer's own weights, in saved files too.
    return tf.convert_to_tensor(inputs)


@contextlib.contextmanager
def rounding_off(observe: Callable[..., Any] = _pass_on) -> Iterator[None]:
    """Lets fake quantization pass everything on unrounded while the block runs.

    Args:
        observe: Called in place of the quantizers of activations, and returns what goes on.
    """
    # The quantizers stand in configurations, wrappers and activations of each layer: their class
    # is the one place where all of them pass.
    with (
        _lock,
        mock.patch.object(quantizers.LastValueQuantizer, "__call__", _pass_on),
        mock.patch.object(quantizers.MovingAverageQuantizer, "__call__", observe),
        mock.patch.object(quantizers.AllValuesQuantizer, "__call__", observe),
    ):
        yield


def range_values(model: keras.Model) -> list[float]:
    """Returns the least and greatest value of every activation range, in the model's order."""
    weights = {
        id(variable)
        for layer in model.layers
        for _, _, ranges in getattr(layer, "_weight_vars", ())
        for variable in ranges.values()
    }
    return [
        float(np.ravel(variable.numpy())[0])
        for variable in model.non_trainable_variables
        if id(variable) not in weights and re.search(r"_(min|max)(_\d+)?:0$", variable.name)
    ]


def input_ranges(model: keras.Model) -> dict[str, tuple[float, float]]:
    """Returns the range of each fake-quantized input by the input's name, where it was set."""
    ranges = {}
    for layer in model.layers:
        if type(layer).__name__ != "QuantizeLayer" or not getattr(layer, "quantizer", None):
            continue
        low = float(np.min(layer.quantizer_vars["min_var"]))
        high = float(np.max(layer.quantizer_vars["max_var"]))
        if high > low:
            name = layer.input.node.layer.name if hasattr(layer.input, "node") else layer.name
            ranges[name] = (low, high)
    return ranges


def _set_weight_ranges(model: keras.Model) -> None:
    for layer in model.layers:
        for weight, quantizer, ranges in getattr(layer, "_weight_vars", ()):
            # With training=True the quantizer itself stores the weight's range.
            quantizer(weight, True, weights=ranges)
