"""Rewrites normalizations and fixed scalings into operations that have an integer kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.models.layer_names import name_image
from kdtflite.quantization.layers import DepthwiseBatchNormalization
from kdtflite.quantization.rewrites.activations import get_activation_name
from kdtflite.quantization.rewrites.context import LayerParts

__all__ = [
    "rewrite_batch_normalization",
    "rewrite_group_normalization",
    "rewrite_layer_normalization",
    "rewrite_layer_scale",
    "rewrite_scaled_sum",
    "rewrite_scaling",
    "rewrite_unit_normalization",
]

L = keras.layers


def rewrite_batch_normalization(parts: LayerParts, x: Any) -> Any:
    """Batch normalization: unchanged after a convolution, otherwise a depthwise convolution."""
    layer = parts.source
    rank = len(x.shape)
    if list(layer.axis) != [rank - 1] or rank > 4:
        return NotImplemented
    given = parts.as_row(x)
    before = given.node.layer
    folds = type(before) in parts.graph.folding and get_activation_name(before) == "linear"
    part = name_image(rank)
    if folds and parts.is_only_user:
        return parts.from_row(parts.add_copy(part, axis=[3])(given), rank)
    kind = DepthwiseBatchNormalization
    config = {**layer.get_config(), "axis": [3]}
    config.pop("name")
    y = parts.add_layer(kind, part, weights=layer.get_weights(), **config)(given)
    return parts.from_row(y, rank)


def rewrite_scaling(parts: LayerParts, x: Any) -> Any:
    """Rescaling and Normalization as a depthwise convolution, one fixed weight per channel.

    It is not folded into the next kernel: weights smaller by 255 would train with other steps.
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
    y = parts.add_layer(
        L.DepthwiseConv2D,
        name_image(rank),
        weights=[factor[None, None, :, None], offset],
        kernel_size=1,
        trainable=False,
    )(parts.as_row(x))
    return parts.from_row(y, rank)


def rewrite_layer_normalization(parts: LayerParts, x: Any) -> Any:
    """Layer normalization over the channels, step by step.

    y = (x - mean) · rsqrt(mean((x - mean)²) + epsilon) · gamma + beta
    """
    layer = parts.source
    rank = len(x.shape)
    if list(layer.axis) not in ([rank - 1], [-1]) or rank > 4:
        return NotImplemented
    given = parts.as_row(x)
    normal = _normalize(parts, given, [3], layer.epsilon)
    return parts.from_row(_scale_and_shift(parts, normal, rank), rank)


def rewrite_group_normalization(parts: LayerParts, x: Any) -> Any:
    """Group normalization: each group of channels has its own mean and variance over all steps."""
    layer = parts.source
    rank = len(x.shape)
    if layer.axis not in (-1, rank - 1) or rank not in (3, 4) or None in x.shape[1:]:
        return NotImplemented
    given = parts.as_row(x)
    _, height, width, channels = given.shape
    groups = channels if layer.groups == -1 else layer.groups
    shape = (height * width, groups, channels // groups)
    split = parts.add_layer(L.Reshape, "groups", target_shape=shape)(given)
    normal = _normalize(parts, split, [1, 3], layer.epsilon)
    joined = parts.add_layer(L.Reshape, "joined", target_shape=(height, width, channels))(normal)
    return parts.from_row(_scale_and_shift(parts, joined, rank), rank)


def rewrite_unit_normalization(parts: LayerParts, x: Any) -> Any:
    """Division by the Euclidean length: x · rsqrt(max(sum(x²), epsilon))."""
    axes = parts.source.axis
    axes = list(axes) if isinstance(axes, list | tuple) else [axes]
    square = parts.add_op(tf.math.multiply, "square")(x, x)
    total = parts.add_op(tf.reduce_sum, "sum")(square, axis=axes, keepdims=True)
    bounded = parts.add_op(tf.math.maximum, "bounded")(total, 1e-12)
    root = parts.add_op(tf.math.rsqrt, "rsqrt")(bounded)
    return parts.add_op(tf.math.multiply)(x, root)


def rewrite_layer_scale(parts: LayerParts, x: Any) -> Any:
    """LayerScale of ConvNeXt (arXiv 2103.17239): one factor per channel, depthwise."""
    (gamma,) = parts.source.get_weights()
    y = parts.add_layer(
        L.DepthwiseConv2D,
        name_image(len(x.shape)),
        weights=[gamma.reshape(1, 1, -1, 1)],
        kernel_size=1,
        use_bias=False,
    )(parts.as_row(x))
    return parts.from_row(y, len(x.shape))


def rewrite_scaled_sum(parts: LayerParts, inputs: Any) -> Any:
    """Inception-ResNet's residual: inputs[0] + inputs[1] · scale."""
    scaled = parts.add_op(tf.math.multiply, "scaled")(inputs[1], float(parts.source.scale))
    return parts.add_op(tf.math.add)(inputs[0], scaled)


def _normalize(parts: LayerParts, x: Any, axes: list[int], epsilon: float) -> Any:
    mean = parts.add_op(tf.reduce_mean, "mean")(x, axis=axes, keepdims=True)
    centered = parts.add_op(tf.math.subtract, "centred")(x, mean)
    # Not tf.square: that has no integer kernel.
    square = parts.add_op(tf.math.multiply, "square")(centered, centered)
    variance = parts.add_op(tf.reduce_mean, "variance")(square, axis=axes, keepdims=True)
    safe = parts.add_op(tf.math.add, "safe")(variance, float(epsilon))
    root = parts.add_op(tf.math.rsqrt, "rsqrt")(safe)
    return parts.add_op(tf.math.multiply, "normal")(centered, root)


def _scale_and_shift(parts: LayerParts, x: Any, rank: int) -> Any:
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
    return parts.add_layer(
        L.DepthwiseConv2D,
        name_image(rank),
        weights=[gamma.reshape(1, 1, channels, 1), *([] if beta is None else [beta])],
        kernel_size=1,
        use_bias=beta is not None,
        depthwise_regularizer=layer.gamma_regularizer,
        bias_regularizer=layer.beta_regularizer,
        depthwise_constraint=layer.gamma_constraint,
        bias_constraint=layer.beta_constraint,
    )(x)
