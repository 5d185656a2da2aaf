"""Rewrites layers over (batch, steps, channels) into layers over images of one row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.layer_names import name_image
from kdtflite.quantization.rewrites.context import LayerParts

__all__ = [
    "rewrite_average",
    "rewrite_embedding",
    "rewrite_global_pooling_1d",
    "rewrite_masking",
    "rewrite_on_rows",
    "rewrite_padding_1d",
    "rewrite_pooling_1d",
]

L = keras.layers

_POOLING_2D = {
    L.AveragePooling1D: L.AveragePooling2D,
    L.GlobalAveragePooling1D: L.GlobalAveragePooling2D,
    L.GlobalMaxPooling1D: L.GlobalMaxPooling2D,
    L.MaxPooling1D: L.MaxPooling2D,
}


def rewrite_pooling_1d(parts: LayerParts, x: Any) -> Any:
    """MaxPooling1D and AveragePooling1D."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    y = parts.add_layer(
        _POOLING_2D[type(layer)],
        name_image(3),
        pool_size=(1, *_as_one(layer.pool_size)),
        strides=(1, *_as_one(layer.strides)),
        padding=layer.padding,
    )(parts.as_row(x))
    return parts.from_row(y, 3)


def rewrite_global_pooling_1d(parts: LayerParts, x: Any) -> Any:
    """GlobalMaxPooling1D and GlobalAveragePooling1D; the average over the steps of a mask."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    mask = parts.find_mask(x)
    if mask is not None and isinstance(layer, L.GlobalAveragePooling1D):
        if layer.keepdims:
            return NotImplemented
        return _average_masked_steps(parts, x, mask)
    y = parts.add_layer(_POOLING_2D[type(layer)], keepdims=False)(parts.as_row(x))
    if not layer.keepdims:
        return y
    return parts.add_layer(L.Reshape, "kept", target_shape=(1, y.shape[-1]))(y)


def _average_masked_steps(parts: LayerParts, x: Any, mask: Any) -> Any:
    """sum(x · mask) / sum(mask), the quotient as r² with r = rsqrt(sum): no integer division."""
    column = parts.add_op(tf.expand_dims, "mask_column")(mask, axis=-1)
    kept = parts.add_op(tf.where, "kept")(column, x, 0.0)
    weight = parts.add_op(tf.where, "mask_weight")(mask, 1.0, 0.0)
    total = parts.add_op(tf.reduce_mean, "mean")(kept, axis=1)
    share = parts.add_op(tf.reduce_mean, "share")(weight, axis=1, keepdims=True)
    root = parts.add_op(tf.math.rsqrt, "rsqrt")(share)
    half = parts.add_op(tf.math.multiply, "half")(total, root)
    return parts.add_op(tf.math.multiply)(half, root)


def rewrite_embedding(parts: LayerParts, x: Any) -> Any:
    """Embedding(mask_zero=True) as the table and a mask for the layers that use one."""
    if not parts.source.mask_zero:
        return NotImplemented
    y = parts.add_copy(mask_zero=False)(x)
    parts.note_mask(y, parts.add_op(tf.math.not_equal, "mask")(x, 0))
    return y


def rewrite_masking(parts: LayerParts, x: Any) -> Any:
    """Masking: steps with the mask value in every channel become 0 and are masked."""
    value = parts.source.mask_value
    above = parts.add_op(tf.math.greater, "above")(x, value)
    below = parts.add_op(tf.math.less, "below")(x, value)
    differs = parts.add_op(tf.math.logical_or, "differs")(above, below)
    mask = parts.add_op(tf.reduce_any, "mask")(differs, axis=-1)
    column = parts.add_op(tf.expand_dims, "column")(mask, axis=-1)
    y = parts.add_op(tf.where)(column, x, 0.0)
    parts.note_mask(y, mask)
    return y


def rewrite_padding_1d(parts: LayerParts, x: Any) -> Any:
    """ZeroPadding1D, Cropping1D and UpSampling1D."""
    layer = parts.source
    row = parts.as_row(x)
    if isinstance(layer, L.UpSampling1D):
        y = parts.add_layer(L.UpSampling2D, name_image(3), size=(1, layer.size))(row)
    elif isinstance(layer, L.ZeroPadding1D):
        y = parts.add_layer(L.ZeroPadding2D, name_image(3), padding=((0, 0), tuple(layer.padding)))(
            row
        )
    else:
        y = parts.add_layer(L.Cropping2D, name_image(3), cropping=((0, 0), tuple(layer.cropping)))(
            row
        )
    return parts.from_row(y, 3)


def rewrite_on_rows(parts: LayerParts, x: Any) -> Any:
    """A layer that computes each value by itself, on the images behind its inputs."""
    several = isinstance(x, list | tuple)
    given = list(x) if several else [x]
    if not parts.has_row(*given) or len({len(one.shape) for one in given}) > 1:
        return NotImplemented
    rows = [parts.as_row(one) for one in given]
    changes = {"axis": 3} if isinstance(parts.source, L.Softmax | L.Concatenate) else {}
    if changes and parts.source.axis not in (-1, len(given[0].shape) - 1):
        return NotImplemented
    y = parts.add_copy(name_image(len(given[0].shape)), **changes)(rows if several else rows[0])
    return parts.from_row(y, len(given[0].shape))


def rewrite_average(parts: LayerParts, inputs: Any) -> Any:
    """Average as a sum and a factor, each of them rounded, as in the file."""
    total = inputs[0]
    for i, other in enumerate(inputs[1:]):
        total = parts.add_op(tf.math.add, f"sum_{i}")(total, other)
    return parts.add_op(tf.math.multiply)(total, 1.0 / len(inputs))


def _as_one(value: Any) -> tuple[int]:
    return (int(value[0] if isinstance(value, list | tuple) else value),)
