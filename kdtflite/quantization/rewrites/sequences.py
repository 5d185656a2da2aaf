"""Layers over (batch, steps, channels) as layers over images of one row."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.rewrites.context import Parts, image_part

__all__ = [
    "average",
    "embedding",
    "global_pooling_1d",
    "masking",
    "on_rows",
    "padding_1d",
    "pooling_1d",
]

L = keras.layers

_POOLS = {L.MaxPooling1D: L.MaxPooling2D, L.AveragePooling1D: L.AveragePooling2D}
_GLOBAL = {
    L.GlobalMaxPooling1D: L.GlobalMaxPooling2D,
    L.GlobalAveragePooling1D: L.GlobalAveragePooling2D,
}


def pooling_1d(parts: Parts, x: Any) -> Any:
    """MaxPooling1D and AveragePooling1D."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    y = parts.layer(
        _POOLS[type(layer)],
        "row",
        pool_size=(1, *_one(layer.pool_size)),
        strides=(1, *_one(layer.strides)),
        padding=layer.padding,
    )(parts.row(x))
    return parts.unrow(y, 3)


def global_pooling_1d(parts: Parts, x: Any) -> Any:
    """GlobalMaxPooling1D and GlobalAveragePooling1D; the average over the steps of a mask."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    mask = parts.mask(x)
    if mask is not None and isinstance(layer, L.GlobalAveragePooling1D):
        if layer.keepdims:
            return NotImplemented
        return _masked_average(parts, x, mask)
    y = parts.layer(_GLOBAL[type(layer)], keepdims=False)(parts.row(x))
    if not layer.keepdims:
        return y
    return parts.layer(L.Reshape, "kept", target_shape=(1, y.shape[-1]))(y)


def _masked_average(parts: Parts, x: Any, mask: Any) -> Any:
    """sum(x · mask) / sum(mask), the quotient as r² with r = rsqrt(sum): no integer division."""
    column = parts.op(tf.expand_dims, "mask_column")(mask, axis=-1)
    kept = parts.op(tf.where, "kept")(column, x, 0.0)
    weight = parts.op(tf.where, "mask_weight")(mask, 1.0, 0.0)
    total = parts.op(tf.reduce_mean, "mean")(kept, axis=1)
    share = parts.op(tf.reduce_mean, "share")(weight, axis=1, keepdims=True)
    root = parts.op(tf.math.rsqrt, "rsqrt")(share)
    half = parts.op(tf.math.multiply, "half")(total, root)
    return parts.op(tf.math.multiply)(half, root)


def embedding(parts: Parts, x: Any) -> Any:
    """Embedding(mask_zero=True) as the table and a mask for those layers that use one."""
    if not parts.source.mask_zero:
        return NotImplemented
    y = parts.clone(mask_zero=False)(x)
    parts.note_mask(y, parts.op(tf.math.not_equal, "mask")(x, 0))
    return y


def masking(parts: Parts, x: Any) -> Any:
    """Masking: steps that hold the mask value in every channel become 0, and are masked."""
    differs = parts.op(tf.math.not_equal, "differs")(x, parts.source.mask_value)
    mask = parts.op(tf.reduce_any, "mask")(differs, axis=-1)
    column = parts.op(tf.expand_dims, "column")(mask, axis=-1)
    y = parts.op(tf.where)(column, x, 0.0)
    parts.note_mask(y, mask)
    return y


def padding_1d(parts: Parts, x: Any) -> Any:
    """ZeroPadding1D, Cropping1D and UpSampling1D."""
    layer = parts.source
    row = parts.row(x)
    if isinstance(layer, L.UpSampling1D):
        y = parts.layer(L.UpSampling2D, "row", size=(1, layer.size))(row)
    elif isinstance(layer, L.ZeroPadding1D):
        y = parts.layer(L.ZeroPadding2D, "row", padding=((0, 0), tuple(layer.padding)))(row)
    else:
        y = parts.layer(L.Cropping2D, "row", cropping=((0, 0), tuple(layer.cropping)))(row)
    return parts.unrow(y, 3)


def on_rows(parts: Parts, x: Any) -> Any:
    """A layer that takes each value by itself, on the images behind its inputs."""
    several = isinstance(x, list | tuple)
    given = list(x) if several else [x]
    if not parts.has_row(*given) or len({len(one.shape) for one in given}) > 1:
        return NotImplemented
    rows = [parts.row(one) for one in given]
    changes = {"axis": 3} if isinstance(parts.source, L.Softmax | L.Concatenate) else {}
    if changes and parts.source.axis not in (-1, len(given[0].shape) - 1):
        return NotImplemented
    y = parts.clone(image_part(len(given[0].shape)), **changes)(rows if several else rows[0])
    return parts.unrow(y, len(given[0].shape))


def average(parts: Parts, inputs: Any) -> Any:
    """Average as a sum and a factor, each rounded, as the file has them."""
    total = inputs[0]
    for i, other in enumerate(inputs[1:]):
        total = parts.op(tf.math.add, f"sum_{i}")(total, other)
    return parts.op(tf.math.multiply)(total, 1.0 / len(inputs))


def _one(value: Any) -> tuple[int]:
    return (int(value[0] if isinstance(value, list | tuple) else value),)
