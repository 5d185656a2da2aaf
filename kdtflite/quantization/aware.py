"""quantize_aware: a student that trains with fake quantization, its ranges already set."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.representative import InputSpec, representative
from kdtflite.errors import UnsupportedModelError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.float32 import custom_layers, float32_policy, in_float32
from kdtflite.progress import say
from kdtflite.quantization.configs import (
    OutputOnly,
    Scheme,
    keep_frozen,
    quantize_scope,
    tfmot,
)
from kdtflite.quantization.ranges import rounding_off
from kdtflite.quantization.report import LayerQuantization, QuantizationAwareness

__all__ = ["quantize_aware"]

_PREFIX = "quant_"
# TFMOT fake-quantizes these activations inside a layer, and no others.
_ACTIVATIONS = frozenset({"linear", "relu", "softmax", "sigmoid", "tanh", "swish", "gelu"})
_ACTIVATION_LAYERS = _ACTIVATIONS | {"relu6"}
_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.SeparableConv2D,
    keras.layers.Dense,
)
_BATCH = 64
# Largest difference, relative to the largest output, that float32 alone makes in another order.
_SAME = 1e-3


def quantize_aware(model: Any, representative_data: Any = None) -> keras.Model:
    """Returns a copy of `model` that trains quantization-aware.

    Weights and activations pass through fake quantization (Jacob et al., arXiv 1712.05877) as
    the int8 kernels will compute: convolutions and depthwise convolutions one scale a channel,
    Dense and activations one scale a tensor, batch normalization folded into what precedes it.
    Layers that TFMOT cannot wrap stay float in training and are calibrated at conversion;
    `model.quantization.summary()` says which and why.

    Args:
        model: A tf_keras or Keras 3 Sequential or Functional model, built. It is not changed.
        representative_data: Samples that set every activation range before the first step, as
            `kdtflite.data.representative` takes them; a few hundred will do. Without them
            `Distiller.fit` calibrates on its first batches.

    Returns:
        A tf_keras model with the same inputs and outputs and an attribute `quantization`.

    Raises:
        UnsupportedModelError: The model is subclassed, quantized already, or has no layer that
            can be trained quantization-aware.
        DataError: The representative data do not fit the model.
    """
    model = as_tf_keras(model)
    _check(model)
    left_out: dict[str, str] = {}
    configs: dict[str, Any] = {}
    model = in_float32(model)
    with float32_policy(), custom_layers(model):
        for layer in model.layers:
            _plan(layer, left_out, configs)
        wrapped = _wrap(model, left_out, configs)
    quantization = QuantizationAwareness(_report(model, wrapped, left_out), wrapped)
    wrapped.quantization = quantization
    calibrated = [layer for layer in quantization.layers if layer.how == "calibrated"]
    if calibrated:
        say(
            f"{len(calibrated)} of {len(quantization.layers)} layers are not trained "
            f"quantization-aware but calibrated at conversion: "
            f"{', '.join(f'{layer.layer} ({layer.kind})' for layer in calibrated[:8])}"
            f"{', ...' if len(calibrated) > 8 else ''}."
        )
    if representative_data is None:
        _check_same_function(model, wrapped, _any_inputs(model))
        return wrapped
    samples = representative(representative_data, _inputs(model))
    structure = getattr(wrapped, "_nested_inputs", wrapped.inputs[0])
    batches = [
        tf.nest.pack_sequence_as(structure, [batch[name] for name in model.input_names])
        for batch in samples.batches(_BATCH)
    ]
    _check_same_function(model, wrapped, batches[0])
    quantization.calibrate(batches)
    return wrapped


def _check_same_function(model: keras.Model, wrapped: keras.Model, inputs: Any) -> None:
    """Raises unless, without rounding, the wrapped model computes what the float model does.

    TFMOT rewrites the graph; a rewrite that went wrong would train a student of another model.
    """
    with rounding_off():
        rewritten = tf.nest.flatten(wrapped(inputs, training=False))
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
                f"TFMOT's rewriting changed what {model.name!r} computes: output {name!r} "
                f"differs by {largest:.3g} before any rounding. "
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
    if not isinstance(model, keras.Sequential) and not getattr(model, "_is_graph_network", False):
        raise UnsupportedModelError(
            f"Expected a Sequential or Functional model. Received: {model.name!r}, a "
            f"{type(model).__name__}, whose graph cannot be seen. Build it with "
            "keras.Model(inputs, outputs)."
        )
    if any(
        layer.name.startswith(_PREFIX) and hasattr(layer, "quantize_config")
        for layer in model.layers
    ):
        raise UnsupportedModelError(
            f"The model {model.name!r} is quantization-aware already. Pass the float model."
        )
    for layer in model._flatten_layers(include_self=False):
        if type(layer) is keras.layers.Lambda:
            raise UnsupportedModelError(
                f"The layer {layer.name!r} is a Lambda, whose code cannot be copied safely. "
                "Make it a subclass of keras.layers.Layer, or use TensorFlow operations directly."
            )


def _plan(layer: keras.layers.Layer, left_out: dict[str, str], configs: dict[str, Any]) -> None:
    """Notes in `left_out` or `configs` what TFMOT's defaults cannot do for `layer`."""
    kind = type(layer)
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    if kind is keras.layers.InputLayer:
        return
    if isinstance(layer, keras.Model):
        left_out[layer.name] = "a model inside the model"
    elif kind is keras.layers.Activation:
        if activation not in _ACTIVATION_LAYERS:
            # Leaving it out would fail too, after a layer that is wrapped.
            configs[layer.name] = OutputOnly(quantize_output=True)
    elif kind is keras.layers.BatchNormalization:
        if not _follows_convolution(layer):
            left_out[layer.name] = "batch normalization that follows no convolution"
    elif kind is keras.layers.SeparableConv2D:
        return  # TFMOT splits it into a depthwise and a pointwise convolution
    elif not Scheme().get_quantize_registry().supports(layer):
        left_out[layer.name] = f"TFMOT has no fake quantization for {kind.__name__}"
    elif activation not in _ACTIVATIONS:
        # As the file will be: the activation's output is quantized, not what goes into it.
        config = copy.copy(Scheme().get_quantize_registry().get_quantize_config(layer))
        config.activation_attrs, config.quantize_output = [], True
        configs[layer.name] = config


def _follows_convolution(layer: keras.layers.Layer) -> bool:
    before = getattr(layer.inbound_nodes[0], "inbound_layers", None)
    if not isinstance(before, keras.layers.Layer) or not isinstance(before, _CONVOLUTIONS):
        return False
    activation = getattr(before.activation, "__name__", "")
    return activation == "linear" and len(before.outbound_nodes) == 1


def _wrap(model: keras.Model, left_out: dict[str, str], configs: dict[str, Any]) -> keras.Model:
    """Wraps all layers but those left out; a layer that TFMOT refuses joins those."""
    annotate = tfmot.quantization.keras.quantize_annotate_layer

    def annotated(layer: keras.layers.Layer) -> keras.layers.Layer:
        cloned = type(layer).from_config(layer.get_config())
        if layer.name in left_out or isinstance(layer, keras.layers.InputLayer):
            return cloned
        return annotate(cloned, configs.get(layer.name))

    for _ in range(len(model.layers)):
        if all(
            layer.name in left_out
            for layer in model.layers
            if not isinstance(layer, keras.layers.InputLayer)
        ):
            raise UnsupportedModelError(
                f"No layer of {model.name!r} can be trained quantization-aware: "
                + "; ".join(f"{name}: {why}" for name, why in left_out.items())
                + ". Convert the float model with kdtflite.convert(), which calibrates it."
            )
        try:
            clone = keras.models.clone_model(model, clone_function=annotated)
            clone.set_weights(model.get_weights())
            with quantize_scope():
                wrapped = tfmot.quantization.keras.quantize_apply(clone, Scheme(), _PREFIX)
            keep_frozen(wrapped)
            return wrapped
        except (ValueError, RuntimeError, AttributeError, TypeError, KeyError) as error:
            refused = _named_layer(model, str(error), left_out)
            if refused is None:
                raise UnsupportedModelError(
                    f"TFMOT cannot make {model.name!r} quantization-aware "
                    f"({type(error).__name__}: {str(error).rstrip('.')}). "
                    "Convert the float model with kdtflite.convert(), which calibrates it."
                ) from error
            left_out[refused] = f"refused by TFMOT: {str(error).splitlines()[0][:120]}"
    raise AssertionError("each round leaves out one more layer")


def _named_layer(model: keras.Model, message: str, left_out: dict[str, str]) -> str | None:
    """Returns the layer that TFMOT's message names, as "Layer NAME:..." or in quotes."""
    names = [layer.name for layer in model.layers if layer.name not in left_out]
    for before, after in ((r"[Ll]ayer ", r"\b"), (r"['\"`]", r"['\"`]")):
        for name in sorted(names, key=len, reverse=True):
            if re.search(before + re.escape(name) + after, message):
                return name
    return None


def _report(
    model: keras.Model, wrapped: keras.Model, left_out: dict[str, str]
) -> tuple[LayerQuantization, ...]:
    by_name = {layer.name: layer for layer in wrapped.layers}
    rows = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        kind = type(layer).__name__
        wrapper = by_name.get(_PREFIX + layer.name)
        if layer.name in left_out:
            rows.append(LayerQuantization(layer.name, kind, "calibrated", left_out[layer.name]))
        elif wrapper is not None and not _quantizes(wrapper):
            rows.append(LayerQuantization(layer.name, kind, "folded"))
        else:
            rows.append(LayerQuantization(layer.name, kind, "trained"))
    return tuple(rows)


def _quantizes(wrapper: Any) -> bool:
    """Whether the wrapper rounds anything: a folded batch normalization does not."""
    return any("_min" in weight.name for weight in wrapper.weights)


def _inputs(model: keras.Model) -> list[InputSpec]:
    return [
        InputSpec(name, tuple(tensor.shape[1:]), tensor.dtype.name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]
