"""quantize_aware: a student that trains with fake quantization, its ranges already set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, UnsupportedModelError, choose
from kdtflite.models.as_graph import as_graph
from kdtflite.models.keras_internals import get_input_structure
from kdtflite.models.parity import compare, draw_inputs
from kdtflite.models.policy import use_custom_layers, use_float32
from kdtflite.progress import say
from kdtflite.quantization.calibration import Observer, get_calibration
from kdtflite.quantization.compressed import describe_compression
from kdtflite.quantization.graph import list_calls
from kdtflite.quantization.inputs import batch_inputs
from kdtflite.quantization.ranges import suspend_rounding
from kdtflite.quantization.report import (
    LayerQuantization,
    QuantizationAwareness,
    attach_awareness,
    list_rounded_layers,
)
from kdtflite.quantization.rewriting import rewrite
from kdtflite.quantization.suitability import check_suitability, list_leaves, refuse_tied_weights
from kdtflite.quantization.unquantized import explain_float
from kdtflite.quantization.wrapping import is_known, wrap

__all__ = ["make_aware", "quantize_aware"]

_RANGES = ("fixed", "learned", "moving")
# The largest difference, relative to the largest output, that another order of float32 operations
# causes.
_SAME = 1e-3


@check_arguments
def quantize_aware(
    model: Any,
    representative_data: Any = None,
    *,
    calibration: str | Callable[[], Observer] = "min_max",
    ranges: str = "moving",
    weight_bits: int = 8,
) -> keras.Model:
    """Returns a copy of `model` that trains quantization-aware.

    Weights and activations pass through fake quantization (Jacob et al., arXiv 1712.05877) as
    the int8 kernels will compute them: one scale per channel for convolutions and depthwise
    convolutions, one scale per tensor for Dense layers and activations, batch normalization
    folded into the layer before it. The model is first rewritten, exactly, into layers that have
    an integer kernel: nested models are opened, sequences become images of one row, attention and
    layer normalization become single steps. What cannot be rewritten stays in float while the
    model trains and is calibrated at conversion; `print(model.quantization)` lists these layers
    and the reasons, and those that no integer file can hold.

    Args:
        model: A model as `kdtflite.models.as_graph` takes it. It is not changed.
        representative_data: Samples that set every activation range before the first step, as
            `kdtflite.data.take_samples` takes them; a few hundred are enough. Without them
            `Distiller.fit` calibrates on its first batches.
        calibration: How an activation's range is chosen from them: "min_max", "moving_average",
            "percentile", "mse", "mean_std" or "entropy", or the result of
            `kdtflite.quantization.get_calibration`, which takes the options of each.
        ranges: What training does with the ranges: "moving" (they follow the batches), "fixed",
            or "learned" (the scales of activations and weights train; LSQ, arXiv 1902.08153).
        weight_bits: 8, or 4 for a file of target "int8x4": the weights of Conv2D and Dense layers
            have 15 levels, and scales that are learned whatever `ranges` says. All other weights
            keep eight bits.

    Returns:
        A tf_keras model with the same inputs and outputs and an attribute `quantization`.

    Raises:
        UnsupportedModelError: The model is quantized already, has no layer that can be trained
            quantization-aware, or is subclassed and cannot be traced.
        DataError: The representative data do not fit the model.
        ConfigurationError: There is no such calibration, way to treat ranges, or number of bits.

    Example:
        >>> import kdtflite
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> model = keras.Sequential([
        ...     keras.Input((2,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(3)
        ... ])
        >>> x = np.linspace(-1, 1, 64, dtype="float32").reshape(32, 2)
        >>> student = kdtflite.quantize_aware(model, x)
        >>> student.quantization.summary()
        '2 trained, 0 folded, 0 calibrated'
    """
    return make_aware(
        model, representative_data, calibration, ranges, trains=True, weight_bits=weight_bits
    )


def make_aware(
    model: Any,
    representative_data: Any,
    calibration: str | Callable[[], Observer],
    ranges: str,
    *,
    trains: bool,
    weight_bits: int = 8,
) -> keras.Model:
    """Does as `quantize_aware`; without `trains`, every range is that of inference."""
    given, model = model, as_graph(model)
    if trains and (undone := describe_compression(model)):
        say(undone)
    observer = get_calibration(calibration) if isinstance(calibration, str) else calibration
    choose(ranges, _RANGES, what="way to treat ranges")
    if weight_bits not in (4, 8):
        raise ConfigurationError(f"Expected weight_bits of 4 or 8. Received: {weight_bits}.")
    if not isinstance(given, keras.Model) and hasattr(given, "layers"):
        refuse_tied_weights(given)  # from Keras 3 to tf_keras each layer gets its own weights
    check_suitability(model)
    with use_float32(), use_custom_layers(model):
        flat, origin = rewrite(model)
        aware = wrap(flat, ranges=ranges, weight_bits=weight_bits)
    report = QuantizationAwareness(_report(model, flat, aware, origin), aware, origin)
    attach_awareness(aware, report, model.output_names)
    _say_what_is_not_trained(aware.quantization)
    if representative_data is None:
        # Token 0 is in every vocabulary, also in that of a table that no layer names.
        inputs = tf.nest.map_structure(
            lambda array: array if array.dtype.kind == "f" else np.zeros_like(array),
            draw_inputs(model, get_input_structure(model)),
        )
    else:
        batches = list(batch_inputs(model, representative_data))
        # Before the comparison: it names the layer whose output is NaN or infinite.
        aware.quantization.calibrate(batches, observer, trains=trains)
        inputs = tf.nest.map_structure(np.asarray, batches[0])
    with suspend_rounding(aware):
        # A wrong rewrite would train the student of another model.
        compare(
            f"The model {model.name!r} was rewritten for integer kernels",
            model,
            aware,
            inputs,
            "Convert the float model with kdtflite.convert(), which calibrates it.",
            tolerance=_SAME,
            allow_noise=False,
        )
    return aware


def _say_what_is_not_trained(quantization: QuantizationAwareness) -> None:
    for how, consequence in (
        ("calibrated", "are not trained quantization-aware but calibrated at conversion"),
        ("float", "have no integer kernel: convert() will refuse the model as an integer file"),
    ):
        found = [layer for layer in quantization.layers if layer.how == how]
        if found:
            say(
                f"{len(found)} of {len(quantization.layers)} layers {consequence}: "
                f"{', '.join(f'{layer.layer} ({layer.kind})' for layer in found[:8])}"
                f"{', ...' if len(found) > 8 else ''}."
            )


def _report(
    model: keras.Model, flat: keras.Model, aware: keras.Model, origin: dict[str, str]
) -> tuple[LayerQuantization, ...]:
    """Returns how each layer of the float model becomes integer; raises if none is trained."""
    parts: dict[str, list[Any]] = {}
    for layer in flat.layers:
        parts.setdefault(origin.get(layer.name, ""), []).append(layer)
    in_float: dict[str, str] = {}
    for call in list_calls(flat):
        if why := explain_float(call):
            in_float.setdefault(origin.get(call.layer.name, ""), why)
    rounded = list_rounded_layers(aware)
    rows = []
    for path, layer in list_leaves(model):
        kind = type(layer).__name__
        unknown = [part for part in parts.get(path, ()) if not is_known(part)]
        if path in in_float:
            rows.append(LayerQuantization(path, kind, "float", in_float[path]))
        elif unknown:
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
