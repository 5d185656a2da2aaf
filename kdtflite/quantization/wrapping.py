"""Fake quantization put around each layer of a rewritten model, as the integer kernels compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda

from kdtflite.quantization.graph import Call, calls, is_symbolic, model_of, substitute
from kdtflite.quantization.layers import (
    DepthwiseBatchNormalization,
    FakeQuantize,
    FakeQuantized,
    FoldedBatchNormalization,
)
from kdtflite.quantization.quantizers import (
    ActivationQuantizer,
    FixedQuantizer,
    LearnedQuantizer,
    LearnedWeightQuantizer,
    WeightQuantizer,
)
from kdtflite.quantization.rewrites.activations import activation_name

__all__ = ["PREFIX", "is_known", "wrapped"]

L = keras.layers
PREFIX = "quant_"
"""Starts the name of whatever gives a layer's fake-quantized output."""

# The axes of a layer's weights that have a scale for each position.
_WEIGHTS: dict[type, dict[str, tuple[int, ...]]] = {
    L.Conv2D: {"kernel": (-1,)},
    # Its kernels have a scale a channel too, but the converter takes none that was trained.
    L.Conv2DTranspose: {"kernel": ()},
    L.Dense: {"kernel": ()},
    L.DepthwiseConv2D: {"depthwise_kernel": (-2, -1)},
    L.Embedding: {"embeddings": ()},
}
_FOLDED = frozenset({L.Conv2D, L.DepthwiseConv2D})

# Their output has the scale of their input, or they are nothing in inference.
_SAME_SCALE = frozenset(
    {
        L.ActivityRegularization,
        L.AlphaDropout,
        L.AveragePooling2D,
        L.Cropping2D,
        L.Dropout,
        L.Flatten,
        L.GaussianDropout,
        L.GaussianNoise,
        L.GlobalMaxPooling2D,
        L.Identity,
        L.MaxPooling2D,
        L.Permute,
        L.RandomBrightness,
        L.RandomContrast,
        L.RandomCrop,
        L.RandomFlip,
        L.RandomRotation,
        L.RandomTranslation,
        L.RandomZoom,
        L.RepeatVector,
        L.Reshape,
        L.Resizing,
        L.SpatialDropout1D,
        L.SpatialDropout2D,
        L.UpSampling2D,
        L.ZeroPadding2D,
        SlicingOpLambda,
    }
)
_SAME_SCALE_OPERATIONS = frozenset(
    {
        "broadcast_to",
        "cast",
        "expand_dims",
        "gather",
        "identity",
        "pad",
        "repeat",
        "reshape",
        "reverse",
        "shape",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "strided_slice",
        "tile",
        "transpose",
        "unstack",
    }
)
_ARITHMETIC = frozenset(
    {
        DepthwiseBatchNormalization,
        L.Activation,
        L.Add,
        L.Average,
        L.BatchNormalization,
        L.Concatenate,
        L.Dot,
        L.GlobalAveragePooling2D,
        L.LeakyReLU,
        L.Maximum,
        L.Minimum,
        L.Multiply,
        L.PReLU,
        L.ReLU,
        L.Softmax,
        L.Subtract,
        TFOpLambda,
    }
)
# Kernels that compute a ReLU after themselves.
_FUSING = frozenset({*_FOLDED, DepthwiseBatchNormalization, L.Add, L.Dense, L.Subtract})
_FUSING_OPERATIONS = frozenset({"add", "subtract", "__operators__.add"})
# The grids that TensorFlow Lite's specification prescribes.
_FIXED = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}


def is_known(layer: keras.layers.Layer) -> bool:
    """Says whether it is known what an integer kernel makes of a layer."""
    kind = type(layer)
    return kind in _WEIGHTS or kind in _SAME_SCALE or kind in _ARITHMETIC


def wrapped(model: keras.Model, *, ranges: str = "moving") -> keras.Model:
    """Returns the model with fake quantization of its inputs, weights and activations.

    Args:
        model: What `rewritten` gave. It is not changed.
        ranges: "moving" (activation ranges follow the batches in training), "fixed" (they stay
            where calibration puts them), or "learned" (scales of activations and weights train).
    """
    plans = _plan(model, ranges)
    clones: dict[int, Any] = {}
    rounders: dict[int, Any] = {}

    def clone(layer: Any) -> Any:
        kind = type(layer)
        if kind is L.BatchNormalization:
            kind = FoldedBatchNormalization
        return kind.from_config(layer.get_config())

    def build(source: keras.Model, tensors: dict[int, Any]) -> None:
        for old, name in zip(source.inputs, source.input_names, strict=True):
            if old.dtype.is_floating:
                quantizer = _activation(ranges)
                rounder = FakeQuantize(quantizer, name=f"{PREFIX}{name}")
                tensors[id(old)] = rounder(tensors[id(old)])
        for call, plan in plans:
            layer = call.layer
            args, kwargs = substitute(call.args, tensors), substitute(call.kwargs, tensors)
            new = id(layer) not in clones
            if new:
                clones[id(layer)] = clone(layer)
                if plan.weights:
                    clones[id(layer)] = FakeQuantized(
                        clones[id(layer)],
                        plan.weights,
                        plan.output,
                        name=PREFIX + layer.name,
                        # SavedModels set it on all that is inside.
                        trainable=layer.trainable,
                    )
            outputs = clones[id(layer)](*args, **kwargs)
            if new and layer.weights:
                _copy_weights(layer, clones[id(layer)])
            if plan.output is not None and not plan.weights:
                if id(layer) not in rounders:
                    rounders[id(layer)] = FakeQuantize(plan.output, name=PREFIX + layer.name)
                outputs = rounders[id(layer)](outputs)
            for before, after in zip(
                tf.nest.flatten(call.outputs), tf.nest.flatten(outputs), strict=True
            ):
                tensors[id(before)] = after

    return model_of(model, build)


def _copy_weights(source: Any, target: Any) -> None:
    if not isinstance(target, FakeQuantized):
        target.set_weights(source.get_weights())
        return
    target.layer.set_weights(source.get_weights())
    for name, quantizer in target.weight_quantizers.items():
        quantizer.set_from(getattr(target.layer, name), target.weight_ranges[name])


def _activation(ranges: str, non_negative: bool = False) -> Any:
    if ranges == "learned":
        return LearnedQuantizer(non_negative=non_negative)
    return ActivationQuantizer(moving=ranges == "moving", non_negative=non_negative)


@dataclass
class _Plan:
    weights: dict[str, WeightQuantizer]
    output: Any


def _plan(model: keras.Model, ranges: str) -> list[tuple[Call, _Plan]]:
    """Decides what of each call is rounded."""
    found = calls(model)
    users: dict[int, list[Call | None]] = {}
    for call in found:
        for tensor in call.inputs:
            users.setdefault(id(tensor), []).append(call)
    for tensor in tf.nest.flatten(model.outputs):
        users.setdefault(id(tensor), []).append(None)
    plans = {}
    for call in found:
        weights = {
            name: (LearnedWeightQuantizer if ranges == "learned" else WeightQuantizer)(axes)
            for name, axes in _WEIGHTS.get(type(call.layer), {}).items()
        }
        plans[id(call)] = _Plan(weights, _output_quantizer(call, users, ranges))
    by_output = {id(t): call for call in found for t in tf.nest.flatten(call.outputs)}
    for call in found:
        if not _joins(call):
            continue
        # The branches of a concatenation share its scale: what goes there alone is not rounded
        # before, or it would be rounded twice.
        for tensor in call.inputs:
            before = by_output.get(id(tensor))
            if before is not None and len(users[id(tensor)]) == 1:
                plan = plans[id(before)]
                if isinstance(plan.output, ActivationQuantizer | LearnedQuantizer):
                    plan.output = None
    return [(call, plans[id(call)]) for call in found]


def _output_quantizer(call: Call, users: dict[int, list[Call | None]], ranges: str) -> Any:
    """Returns the quantizer of a call's output, or None."""
    layer = call.layer
    output = call.outputs
    if not is_symbolic(output) or not output.dtype.is_floating:
        return None
    operation = _operation(layer)
    if operation in ("maximum", "minimum") and len(call.inputs) == 1:
        return None  # with a number: on the scale of its input
    if not is_known(layer) or type(layer) in _SAME_SCALE or operation in _SAME_SCALE_OPERATIONS:
        return None
    if isinstance(layer, L.Embedding):
        return None  # it gives rows of a table that is rounded
    name = operation or activation_name(layer)
    if type(layer) is L.Softmax:
        name = "softmax"
    if name in _FIXED:
        return FixedQuantizer(*_FIXED[name])
    after = users.get(id(output), [])
    if len(after) == 1 and after[0] is not None:
        follower = after[0].layer
        if type(layer) in _FOLDED and type(follower) is L.BatchNormalization:
            return None
        fuses = type(layer) in _FUSING or operation in _FUSING_OPERATIONS
        folded = type(layer) is L.BatchNormalization
        linear = operation is not None or activation_name(layer) == "linear"
        if (fuses or folded) and linear and _is_relu(follower):
            return None
    return _activation(ranges, non_negative=_is_relu(layer) or _ends_in_relu(layer))


def _operation(layer: Any) -> str | None:
    """Returns the plain name of a TensorFlow operation called as a layer."""
    if type(layer) is not TFOpLambda:
        return None
    return str(layer.symbol).removeprefix("math.").removeprefix("nn.")


def _joins(call: Call) -> bool:
    """Says whether a call's inputs must have one scale, that of its output."""
    if type(call.layer) in (L.Concatenate, L.Maximum, L.Minimum):
        return True
    operation = _operation(call.layer)
    return operation in ("concat", "stack", "maximum", "minimum", "where") and len(call.inputs) > 1


def _is_relu(layer: Any) -> bool:
    operation = _operation(layer)
    if operation is not None:
        return operation in ("relu", "relu6")
    if type(layer) is L.Activation:
        return activation_name(layer) in ("relu", "relu6")
    return (
        type(layer) is L.ReLU
        and not layer.negative_slope
        and not layer.threshold
        and layer.max_value in (None, 6.0)
    )


def _ends_in_relu(layer: Any) -> bool:
    return activation_name(layer) in ("relu", "relu6")
