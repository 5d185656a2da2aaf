"""Normalizations and fixed scalings by operations that have an integer kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.layers import DepthwiseBatchNormalization
from kdtflite.quantization.rewrites.activations import activation_name
from kdtflite.quantization.rewrites.context import Parts, image_part

__all__ = [
    "batch_normalization",
    "group_normalization",
    "layer_normalization",
    "layer_scale",
    "scaled_sum",
    "scaling",
    "unit_normalization",
]

L = keras.layers
_FOLDING = (L.Conv2D, L.DepthwiseConv2D)


def batch_normalization(parts: Parts, x: Any) -> Any:
    """Batch normalization: as it is after a convolution, else as a depthwise convolution."""
    layer = parts.source
    rank = len(x.shape)
    if list(layer.axis) != [rank - 1] or rank > 4:
        return NotImplemented
    given = parts.row(x)
    before = given.node.layer
    folds = type(before) in _FOLDING and activation_name(before) == "linear" and parts.alone
    part = image_part(rank)
    if folds:
        return parts.unrow(parts.clone(part, axis=[3])(given), rank)
    kind = DepthwiseBatchNormalization
    config = {**layer.get_config(), "axis": [3]}
    config.pop("name")
    y = parts.layer(kind, part, weights=layer.get_weights(), **config)(given)
    return parts.unrow(y, rank)


def scaling(parts: Parts, x: Any) -> Any:
    """Rescaling and Normalization as a depthwise convolution, one fixed weight a channel.

    Not folded into the next kernel: weights smaller by 255 would train with other steps.
    """
    layer = parts.source
    rank = len(x.shape)
    if rank not in (2, 3, 4) or not x.dtype.is_floating or x.shape[-1] is None:
        return NotImplemented
    channels = x.shape[-1]
    if isinstance(layer, L.Rescaling):
        factor, offset = layer.scale, layer.offset
    else:
        if tuple(layer.axis) not in ((), (rank - 1,), (-1,)):
            return NotImplemented
        deviation = np.maximum(np.sqrt(np.asarray(layer.variance)), keras.backend.epsilon())
        factor = 1.0 / deviation
        offset = -np.asarray(layer.mean) / deviation
        if layer.invert:
            factor, offset = deviation, np.asarray(layer.mean)
    if np.size(factor) not in (1, channels) or np.size(offset) not in (1, channels):
        return NotImplemented
    if len(np.shape(factor)) > 1 and np.shape(factor)[-1] not in (1, channels):
        return NotImplemented
    factor = np.broadcast_to(np.ravel(factor), (channels,)).astype(np.float32)
    offset = np.broadcast_to(np.ravel(offset), (channels,)).astype(np.float32)
    y = parts.layer(
        L.DepthwiseConv2D,
        image_part(rank),
        weights=[factor[None, None, :, None], offset],
        kernel_size=1,
        trainable=False,
    )(parts.row(x))
    return parts.unrow(y, rank)


def layer_normalization(parts: Parts, x: Any) -> Any:
    """Layer normalization over the channels, step by step.

    y = (x - mean) · rsqrt(mean((x - mean)²) + epsilon) · gamma + beta
    """
    layer = parts.source
    rank = len(x.shape)
    if list(layer.axis) not in ([rank - 1], [-1]) or rank > 4:
        return NotImplemented
    given = parts.row(x)
    normal = _normalized(parts, given, [3], layer.epsilon)
    return parts.unrow(_affine(parts, normal, rank), rank)


def group_normalization(parts: Parts, x: Any) -> Any:
    """Group normalization: each group of channels by its own mean and variance over all steps."""
    layer = parts.source
    rank = len(x.shape)
    if layer.axis not in (-1, rank - 1) or rank not in (3, 4) or None in x.shape[1:]:
        return NotImplemented
    given = parts.row(x)
    _, height, width, channels = given.shape
    groups = channels if layer.groups == -1 else layer.groups
    shape = (height * width, groups, channels // groups)
    split = parts.layer(L.Reshape, "groups", target_shape=shape)(given)
    normal = _normalized(parts, split, [1, 3], layer.epsilon)
    joined = parts.layer(L.Reshape, "joined", target_shape=(height, width, channels))(normal)
    return parts.unrow(_affine(parts, joined, rank), rank)


def unit_normalization(parts: Parts, x: Any) -> Any:
    """Division by the Euclidean length: x · rsqrt(max(sum(x²), epsilon))."""
    axes = parts.source.axis
    axes = list(axes) if isinstance(axes, list | tuple) else [axes]
    square = parts.op(tf.math.multiply, "square")(x, x)
    total = parts.op(tf.reduce_sum, "sum")(square, axis=axes, keepdims=True)
    bounded = parts.op(tf.math.maximum, "bounded")(total, 1e-12)
    root = parts.op(tf.math.rsqrt, "rsqrt")(bounded)
    return parts.op(tf.math.multiply)(x, root)


def layer_scale(parts: Parts, x: Any) -> Any:
    """LayerScale of ConvNeXt (arXiv 2103.17239): a factor a channel, as a depthwise convolution."""
    (gamma,) = parts.source.get_weights()
    y = parts.layer(
        L.DepthwiseConv2D,
        image_part(len(x.shape)),
        weights=[gamma.reshape(1, 1, -1, 1)],
        kernel_size=1,
        use_bias=False,
    )(parts.row(x))
    return parts.unrow(y, len(x.shape))


def scaled_sum(parts: Parts, inputs: Any) -> Any:
    """Inception-ResNet's residual: inputs[0] + inputs[1] · scale."""
    scaled = parts.op(tf.math.multiply, "scaled")(inputs[1], float(parts.source.scale))
    return parts.op(tf.math.add)(inputs[0], scaled)


def _normalized(parts: Parts, x: Any, axes: list[int], epsilon: float) -> Any:
    mean = parts.op(tf.reduce_mean, "mean")(x, axis=axes, keepdims=True)
    centred = parts.op(tf.math.subtract, "centred")(x, mean)
    # Not tf.square: that has no integer kernel.
    square = parts.op(tf.math.multiply, "square")(centred, centred)
    variance = parts.op(tf.reduce_mean, "variance")(square, axis=axes, keepdims=True)
    safe = parts.op(tf.math.add, "safe")(variance, float(epsilon))
    root = parts.op(tf.math.rsqrt, "rsqrt")(safe)
    return parts.op(tf.math.multiply, "normal")(centred, root)


def _affine(parts: Parts, x: Any, rank: int) -> Any:
    """Multiplies and shifts each channel, as a depthwise convolution that trains."""
    layer = parts.source
    channels = x.shape[-1]
    weights = dict(
        zip([w.name.split("/")[-1] for w in layer.weights], layer.get_weights(), strict=True)
    )
    gamma = weights.get("gamma:0", np.ones(channels, np.float32))
    beta = weights.get("beta:0")
    if not layer.scale and not layer.center:
        return x
    return parts.layer(
        L.DepthwiseConv2D,
        image_part(rank),
        weights=[gamma.reshape(1, 1, channels, 1), *([] if beta is None else [beta])],
        kernel_size=1,
        use_bias=beta is not None,
        depthwise_regularizer=layer.gamma_regularizer,
        bias_regularizer=layer.beta_regularizer,
        depthwise_constraint=layer.gamma_constraint,
        bias_constraint=layer.beta_constraint,
    )(x)
