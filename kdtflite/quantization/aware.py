"""quantize_aware: a student that trains with fake quantization, its ranges already set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError, choose
from kdtflite.models.as_functional import as_functional
from kdtflite.models.float32 import custom_layers, float32_policy, in_float32
from kdtflite.progress import say
from kdtflite.quantization.calibration import Observer, get_calibration
from kdtflite.quantization.inputs import input_batches
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized
from kdtflite.quantization.ranges import rounding_off
from kdtflite.quantization.report import LayerQuantization, QuantizationAwareness
from kdtflite.quantization.rewrites.rewrite import rewritten
from kdtflite.quantization.wrapping import is_known, wrapped

__all__ = ["quantize_aware"]

_RANGES = ("fixed", "learned", "moving")
# Largest difference, relative to the largest output, that float32 alone makes in another order.
_SAME = 1e-3


def quantize_aware(
    model: Any,
    representative_data: Any = None,
    *,
    calibration: str | Callable[[], Observer] = "min_max",
    ranges: str = "moving",
) -> keras.Model:
    """Returns a copy of `model` that trains quantization-aware.

    Weights and activations pass through fake quantization (Jacob et al., arXiv 1712.05877) as
    the int8 kernels will compute: convolutions and depthwise convolutions one scale a channel,
    Dense and activations one scale a tensor, batch normalization folded into what precedes it.
    The model is first rewritten, exactly, into layers that have an integer kernel: nested models
    are opened, sequences become images of one row, attention and layer normalization are done
    step by step. What cannot be rewritten stays float in training and is calibrated at
    conversion; `model.quantization.summary()` says which and why.

    Args:
        model: A tf_keras or Keras 3 model, built. It is not changed. A subclassed one must be a
            graph of layers (see `kdtflite.models.as_functional`).
        representative_data: Samples that set every activation range before the first step, as
            `kdtflite.data.representative` takes them; a few hundred will do. Without them
            `Distiller.fit` calibrates on its first batches.
        calibration: How an activation's range is chosen from them: "min_max", "moving_average",
            "percentile", "mse", "mean_std" or "entropy", or what
            `kdtflite.quantization.get_calibration` returns for one of these with its options.
        ranges: What training does with the ranges: "moving" (they follow the batches), "fixed",
            or "learned" (the scales of activations and weights train; LSQ, arXiv 1902.08153).

    Returns:
        A tf_keras model with the same inputs and outputs and an attribute `quantization`.

    Raises:
        UnsupportedModelError: The model is quantized already, has no layer that can be trained
            quantization-aware, or is subclassed and cannot be traced.
        DataError: The representative data do not fit the model.
    """
    observer = get_calibration(calibration) if isinstance(calibration, str) else calibration
    choose(ranges, _RANGES, what="way to treat ranges")
    model = as_functional(model)
    _check(model)
    model = in_float32(model)
    with float32_policy(), custom_layers(model):
        flat, origin = rewritten(model)
        aware = wrapped(flat, ranges=ranges)
    aware.quantization = QuantizationAwareness(_report(model, flat, aware, origin), aware, origin)
    _say_what_is_calibrated(aware.quantization)
    if representative_data is None:
        _check_same_function(model, aware, _any_inputs(model))
        return aware
    batches = list(input_batches(model, representative_data))
    _check_same_function(model, aware, batches[0])
    aware.quantization.calibrate(batches, observer)
    return aware


def _say_what_is_calibrated(quantization: QuantizationAwareness) -> None:
    calibrated = [layer for layer in quantization.layers if layer.how == "calibrated"]
    if not calibrated:
        return
    say(
        f"{len(calibrated)} of {len(quantization.layers)} layers are not trained "
        f"quantization-aware but calibrated at conversion: "
        f"{', '.join(f'{layer.layer} ({layer.kind})' for layer in calibrated[:8])}"
        f"{', ...' if len(calibrated) > 8 else ''}."
    )


def _check_same_function(model: keras.Model, aware: keras.Model, inputs: Any) -> None:
    """Raises unless, without rounding, the new model computes what the float model does.

    A rewrite that went wrong would train a student of another model.
    """
    with rounding_off(aware):
        rewritten = tf.nest.flatten(aware(inputs, training=False))
    for name, before, after in zip(
        model.output_names,
        tf.nest.flatten(model(inputs, training=False)),
        rewritten,
        strict=True,
    ):
        before, after = before.numpy(), after.numpy()
        with np.errstate(invalid="ignore"):  # infinite activations are named by calibration
            largest = float(np.max(np.abs(before - after), initial=0.0))
        if largest > _SAME * max(float(np.max(np.abs(before), initial=0.0)), 1e-6):
            raise UnsupportedModelError(
                f"Rewriting {model.name!r} for integer kernels changed what it computes: output "
                f"{name!r} differs by {largest:.3g} before any rounding. "
                "Convert the float model with kdtflite.convert(), which calibrates it."
            )


def _any_inputs(model: keras.Model) -> Any:
    """Returns inputs to compare two models on where no data are given."""
    random = np.random.default_rng(0)

    def draw(tensor: Any) -> Any:
        shape = [2, *(size or 8 for size in tensor.shape[1:])]
        if tensor.dtype.is_floating:
            return tf.constant(random.random(shape), tensor.dtype)
        return tf.zeros(shape, tensor.dtype)  # token 0 is in every vocabulary

    structure = getattr(model, "_nested_inputs", model.inputs[0])
    return tf.nest.map_structure(draw, structure)


def _check(model: keras.Model) -> None:
    layers = list(model._flatten_layers(include_self=False))
    if any(
        isinstance(layer, FakeQuantize | FakeQuantized) or hasattr(layer, "quantize_config")
        for layer in layers
    ):
        raise UnsupportedModelError(
            f"The model {model.name!r} is quantization-aware already. Pass the float model."
        )
    for layer in layers:
        if type(layer) is keras.layers.Lambda:
            raise UnsupportedModelError(
                f"The layer {layer.name!r} is a Lambda, whose code cannot be copied safely. "
                "Make it a subclass of keras.layers.Layer, or use TensorFlow operations directly."
            )


def _report(
    model: keras.Model, flat: keras.Model, aware: keras.Model, origin: dict[str, str]
) -> tuple[LayerQuantization, ...]:
    """Says of each layer of the float model what became of it; raises if none is trained."""
    parts: dict[str, list[Any]] = {}
    for layer in flat.layers:
        parts.setdefault(origin.get(layer.name, ""), []).append(layer)
    rounded = {
        layer.name.removeprefix("quant_")
        for layer in aware.layers
        if isinstance(layer, FakeQuantize | FakeQuantized)
    }
    rows = []
    for path, layer in _leaves(model):
        kind = type(layer).__name__
        unknown = [part for part in parts.get(path, ()) if not is_known(part)]
        if unknown:
            why = f"no integer form is known for {type(unknown[0]).__name__}"
            rows.append(LayerQuantization(path, kind, "calibrated", why))
        elif any(part.name in rounded for part in parts.get(path, ())):
            rows.append(LayerQuantization(path, kind, "trained"))
        else:
            rows.append(LayerQuantization(path, kind, "folded"))
    if not any(row.how == "trained" for row in rows):
        raise UnsupportedModelError(
            f"No layer of {model.name!r} can be trained quantization-aware: "
            + "; ".join(f"{row.layer}: {row.why or row.how}" for row in rows)
            + ". Convert the float model with kdtflite.convert(), which calibrates it."
        )
    return tuple(rows)


def _leaves(model: keras.Model, path: str = "") -> list[tuple[str, Any]]:
    """Returns the layers of a model and of those inside it, by path, inputs left out."""
    return [
        leaf
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
        for leaf in _leaves_of(layer, path + layer.name)
    ]


def _leaves_of(layer: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(layer, keras.layers.TimeDistributed):
        return _leaves_of(layer.layer, path)
    return _leaves(layer, f"{path}/") if isinstance(layer, keras.Model) else [(path, layer)]
