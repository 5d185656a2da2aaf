"""The operations of Keras 3 on tensors, each as the TensorFlow calls that compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.models.graphs import expand_ellipsis
from kdtflite.models.keras3.configs import UnsupportedSettingError
from kdtflite.models.keras3.image_operations import extract_patches, move_blocks, pool, resize
from kdtflite.models.layers import einsum

__all__ = ["AS_THEY_COME", "IN_RESULT_DTYPE", "find_permutation"]

# Takes the Keras 3 operation, whose attributes are its settings, and the operands.
Operation = Callable[..., Any]


def find_permutation(operation: Any, rank: int) -> list[int]:
    """Returns the order of axes after Keras 3's Transpose, Swapaxes or Moveaxis."""
    axes = list(range(rank))
    kind = type(operation).__name__
    if kind == "Transpose":
        return axes[::-1] if operation.axes is None else [axes[axis] for axis in operation.axes]
    if kind == "Swapaxes":
        one, other = axes[operation.axis1], axes[operation.axis2]
        axes[one], axes[other] = other, one
        return axes
    source, destination = np.atleast_1d(operation.source), np.atleast_1d(operation.destination)
    moved = {axes[to]: axes[axis] for axis, to in zip(source, destination, strict=True)}
    stay = iter(axis for axis in axes if axis not in moved.values())
    return [moved[to] if to in moved else next(stay) for to in axes]


def _apply(function: Callable[..., Any]) -> Operation:
    return lambda operation, *operands: function(*operands)


def _reduce(function: Callable[..., Any]) -> Operation:
    def call(operation: Any, x: Any) -> Any:
        if getattr(operation, "initial", None) is not None:
            raise UnsupportedSettingError("it has initial=")
        return function(x, axis=operation.axis, keepdims=operation.keepdims)

    return call


def _find_index(function: Callable[..., Any]) -> Operation:
    def call(operation: Any, x: Any) -> Any:
        if operation.axis is None:
            raise UnsupportedSettingError("it has axis=None")
        index = function(x, axis=operation.axis, output_type="int32")
        return tf.expand_dims(index, operation.axis) if operation.keepdims else index

    return call


def _matmul(operation: Any, a: Any, b: Any) -> Any:
    if len(b.shape) == 1:
        return tf.tensordot(a, b, axes=1)
    return tf.linalg.matmul(a, b)


def _dot(operation: Any, a: Any, b: Any) -> Any:
    return tf.tensordot(a, b, axes=1 if len(b.shape) == 1 else [[-1], [-2]])


def _pad(operation: Any, x: Any, constant_values: Any = None) -> Any:
    if operation.mode not in ("constant", "reflect", "symmetric"):
        raise UnsupportedSettingError(f"it has mode={operation.mode!r}")
    width = [list(pair) for pair in operation.pad_width]
    width = width * len(x.shape) if len(width) == 1 else width
    return tf.pad(x, width, operation.mode.upper(), constant_values=constant_values or 0)


def _var(operation: Any, x: Any) -> Any:
    return tf.math.reduce_variance(x, axis=operation.axis, keepdims=operation.keepdims)


def _round(operation: Any, x: Any) -> Any:
    if operation.decimals:
        raise UnsupportedSettingError(f"it has decimals={operation.decimals}")
    return tf.round(x)


def _apply_softmax(function: Callable[..., Any]) -> Operation:
    def call(operation: Any, x: Any) -> Any:
        if not isinstance(operation.axis, int):
            raise UnsupportedSettingError(f"it has axis={operation.axis!r}")
        return function(x, axis=operation.axis)

    return call


def _glu(operation: Any, x: Any) -> Any:
    one, other = tf.split(x, 2, axis=operation.axis)
    return one * tf.sigmoid(other)


def _normalize(operation: Any, x: Any) -> Any:
    if operation.order != 2:
        raise UnsupportedSettingError(f"it has order={operation.order}")
    epsilon = 1e-7 if operation.epsilon is None else operation.epsilon
    return tf.math.l2_normalize(x, axis=operation.axis, epsilon=epsilon**2)


def _attention(
    operation: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
) -> Any:
    if operation.is_causal or operation.attn_logits_soft_cap is not None or mask is not None:
        raise UnsupportedSettingError("it has a mask or a cap")
    if query.shape[2] != key.shape[2]:
        raise UnsupportedSettingError("its queries have more heads than its keys")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = einsum("btnh,bsnh->bnts", query, key) * scale
    logits = logits if bias is None else logits + bias
    return einsum("bnts,bsnh->btnh", tf.nn.softmax(logits, axis=-1), value)


def _squeeze(operation: Any, x: Any) -> Any:
    return tf.squeeze(x, axis=operation.axis)


def _expand_dims(operation: Any, x: Any) -> Any:
    axes = [operation.axis] if isinstance(operation.axis, int) else sorted(operation.axis)
    for axis in axes:
        x = tf.expand_dims(x, axis)
    return x


def _norm(operation: Any, x: Any) -> Any:
    several = isinstance(operation.axis, list | tuple)
    if operation.axis is None or not (
        operation.ord is None or (operation.ord == 2 and not several)
    ):
        raise UnsupportedSettingError(f"it has ord={operation.ord!r} and axis={operation.axis!r}")
    squares = tf.reduce_sum(tf.square(x), axis=operation.axis, keepdims=operation.keepdims)
    return tf.sqrt(squares)


def _reshape(operation: Any, x: Any) -> Any:
    open_axes = [axis for axis, size in enumerate(operation.newshape) if size in (None, -1)]
    shape = [-1 if size is None else size for size in operation.newshape]
    # Only one size may be -1; the other open ones stay as they are in the input.
    for axis in open_axes[1:]:
        shape[axis] = tf.shape(x)[axis]
    return tf.reshape(x, shape)


def _split(operation: Any, x: Any) -> Any:
    places = operation.indices_or_sections
    if isinstance(places, int):
        return tf.split(x, places, axis=operation.axis)
    size = x.shape[operation.axis]
    if size is None:
        raise UnsupportedSettingError("it splits an axis of unknown size at given places")
    return tf.split(x, np.diff([0, *places, size]).tolist(), axis=operation.axis)


def _get_item(operation: Any, x: Any, key: Any) -> Any:
    key = expand_ellipsis(key, len(x.shape))
    return x[tuple(key)] if isinstance(key, list) else x[key]


def _take(operation: Any, x: Any, indices: Any) -> Any:
    if operation.axis is None:
        return tf.gather(tf.reshape(x, [-1]), indices, axis=0)
    if isinstance(indices, int | list | tuple | np.ndarray):
        size = x.shape[operation.axis]
        indices = np.asarray(indices)
        if (indices < 0).any():
            if size is None:
                raise UnsupportedSettingError("it counts from the end of an axis of unknown size")
            indices = np.where(indices < 0, indices + size, indices)
    return tf.gather(x, indices, axis=operation.axis)


def _flip(operation: Any, x: Any) -> Any:
    axis = operation.axis
    axes = range(len(x.shape)) if axis is None else [axis] if isinstance(axis, int) else axis
    return tf.reverse(x, list(axes))


def _tile(operation: Any, x: Any) -> Any:
    repeats = operation.repeats
    repeats = [repeats] if isinstance(repeats, int) else list(repeats)
    if len(repeats) > len(x.shape):
        raise UnsupportedSettingError("it adds axes")
    return tf.tile(x, [1] * (len(x.shape) - len(repeats)) + repeats)


def _triangle(operation: Any, x: Any, lower: bool) -> Any:
    if operation.k:
        raise UnsupportedSettingError(f"it has k={operation.k}")
    return tf.linalg.band_part(x, -1, 0) if lower else tf.linalg.band_part(x, 0, -1)


def _top_k(operation: Any, x: Any) -> Any:
    return tuple(tf.math.top_k(x, operation.k, sorted=operation.sorted))


def _where(operation: Any, condition: Any, x1: Any = None, x2: Any = None) -> Any:
    if x1 is None or x2 is None:
        raise UnsupportedSettingError("it has no values to choose from")
    return tf.where(condition, x1, x2)


# Operations whose operands, except a condition, are cast to the result's dtype first.
IN_RESULT_DTYPE: dict[str, Operation] = {
    "Abs": _apply(tf.abs),
    "Absolute": _apply(tf.abs),
    "Add": _apply(tf.add),
    "Amax": _reduce(tf.reduce_max),
    "Amin": _reduce(tf.reduce_min),
    "Arccos": _apply(tf.acos),
    "Arccosh": _apply(tf.acosh),
    "Arcsin": _apply(tf.asin),
    "Arcsinh": _apply(tf.asinh),
    "Arctan": _apply(tf.atan),
    "Arctan2": _apply(tf.atan2),
    "Arctanh": _apply(tf.atanh),
    "AveragePool": pool(tf.nn.avg_pool),
    "Ceil": _apply(tf.math.ceil),
    "Celu": lambda o, x: tf.nn.relu(x) + o.alpha * tf.math.expm1(tf.minimum(x, 0.0) / o.alpha),
    "Clip": lambda o, x: tf.clip_by_value(x, o.x_min, o.x_max),
    "Concatenate": lambda o, xs: tf.concat(xs, axis=o.axis),
    "Cos": _apply(tf.cos),
    "Cosh": _apply(tf.cosh),
    "Cumprod": lambda o, x: tf.math.cumprod(x, axis=o.axis),
    "Cumsum": lambda o, x: tf.cumsum(x, axis=o.axis),
    "DepthToSpace": move_blocks(tf.nn.depth_to_space),
    "Divide": _apply(tf.divide),
    "DivideNoNan": _apply(tf.math.divide_no_nan),
    "Dot": _dot,
    "DotProductAttention": _attention,
    "Einsum": lambda o, *operands: einsum(o.subscripts, *operands),
    "Elu": lambda o, x: tf.nn.relu(x) + o.alpha * tf.math.expm1(tf.minimum(x, 0.0)),
    "Erf": _apply(tf.math.erf),
    "Erfc": _apply(tf.math.erfc),
    "Exp": _apply(tf.exp),
    "Exp2": lambda o, x: tf.pow(2.0, x),
    "Expm1": _apply(tf.math.expm1),
    "ExtractPatches": extract_patches,
    "Floor": _apply(tf.floor),
    "FloorDivide": _apply(tf.math.floordiv),
    "FullLike": lambda o, x, fill_value: tf.ones_like(x) * fill_value,
    "Gelu": lambda o, x: tf.nn.gelu(x, approximate=o.approximate),
    "Glu": _glu,
    "HardShrink": lambda o, x: tf.where(tf.abs(x) > o.threshold, x, 0.0),
    "HardSigmoid": lambda o, x: tf.nn.relu6(x + 3.0) * (1 / 6),
    "HardSilu": lambda o, x: x * tf.nn.relu6(x + 3.0) * (1 / 6),
    "HardTanh": lambda o, x: tf.clip_by_value(x, -1.0, 1.0),
    "Hstack": lambda o, xs: tf.concat(xs, axis=0 if len(xs[0].shape) == 1 else 1),
    "LeakyRelu": lambda o, x: tf.nn.leaky_relu(x, alpha=o.negative_slope),
    "Log": _apply(tf.math.log),
    "Log10": lambda o, x: tf.math.log(x) * (1 / math.log(10)),
    "Log1p": _apply(tf.math.log1p),
    "Log2": lambda o, x: tf.math.log(x) * (1 / math.log(2)),
    "LogSigmoid": _apply(tf.math.log_sigmoid),
    "LogSoftmax": _apply_softmax(tf.nn.log_softmax),
    "Logaddexp": lambda o, a, b: tf.maximum(a, b) + tf.math.softplus(-tf.abs(a - b)),
    "Logsumexp": _reduce(tf.reduce_logsumexp),
    "Matmul": _matmul,
    "Max": _reduce(tf.reduce_max),
    "MaxPool": pool(tf.nn.max_pool),
    "Maximum": _apply(tf.maximum),
    "Mean": _reduce(tf.reduce_mean),
    "Min": _reduce(tf.reduce_min),
    "Minimum": _apply(tf.minimum),
    "Mod": _apply(tf.math.floormod),
    "Multiply": _apply(tf.multiply),
    "Negative": _apply(tf.negative),
    "Norm": _norm,
    "Normalize": _normalize,
    "OnesLike": lambda o, x: tf.ones_like(x),
    "Pad": _pad,
    "Power": _apply(tf.pow),
    "Prod": _reduce(tf.reduce_prod),
    "Reciprocal": _apply(tf.math.reciprocal),
    "Relu": _apply(tf.nn.relu),
    "Relu6": _apply(tf.nn.relu6),
    "Resize": resize,
    "Round": _round,
    "Rsqrt": _apply(tf.math.rsqrt),
    "Selu": _apply(tf.nn.selu),
    "Sigmoid": _apply(tf.sigmoid),
    "Sign": _apply(tf.sign),
    "Silu": _apply(tf.nn.silu),
    "Sin": _apply(tf.sin),
    "Sinh": _apply(tf.sinh),
    "SoftShrink": lambda o, x: tf.sign(x) * tf.nn.relu(tf.abs(x) - o.threshold),
    "Softmax": _apply_softmax(tf.nn.softmax),
    "Softplus": _apply(tf.math.softplus),
    "Softsign": _apply(tf.nn.softsign),
    "SpaceToDepth": move_blocks(tf.nn.space_to_depth),
    "Sqrt": _apply(tf.sqrt),
    "Square": _apply(tf.square),
    "Squareplus": lambda o, x: (x + tf.sqrt(tf.square(x) + float(o.b))) * 0.5,
    "Stack": lambda o, xs: tf.stack(xs, axis=o.axis),
    "Std": lambda o, x: tf.sqrt(_var(o, x)),
    "Subtract": _apply(tf.subtract),
    "Sum": _reduce(tf.reduce_sum),
    "Tan": _apply(tf.tan),
    "Tanh": _apply(tf.tanh),
    "TanhShrink": lambda o, x: x - tf.tanh(x),
    "Tensordot": lambda o, a, b: tf.tensordot(a, b, axes=o.axes),
    "Threshold": lambda o, x: tf.where(x > o.threshold, x, float(o.default_value)),
    "TrueDivide": _apply(tf.divide),
    "Var": _var,
    "Vstack": lambda o, xs: tf.concat(xs, axis=0),
    "Where": _where,
    "ZerosLike": lambda o, x: tf.zeros_like(x),
}

# Operations whose operands keep their dtypes: indices, conditions, or values that only move.
AS_THEY_COME: dict[str, Operation] = {
    "All": lambda o, x: tf.reduce_all(tf.cast(x, "bool"), axis=o.axis, keepdims=o.keepdims),
    "Any": lambda o, x: tf.reduce_any(tf.cast(x, "bool"), axis=o.axis, keepdims=o.keepdims),
    "Argmax": _find_index(tf.argmax),
    "Argmin": _find_index(tf.argmin),
    "Argsort": lambda o, x: tf.argsort(x, axis=o.axis, stable=True),
    "BroadcastTo": lambda o, x: tf.broadcast_to(x, list(o.shape)),
    "Cast": lambda o, x: x,  # every result is cast to its dtype in the end
    "ConvertToTensor": lambda o, x: x,
    "Copy": lambda o, x: tf.identity(x),
    "Equal": _apply(tf.equal),
    "ExpandDims": _expand_dims,
    "Flip": _flip,
    "GetItem": _get_item,
    "Greater": _apply(tf.greater),
    "GreaterEqual": _apply(tf.greater_equal),
    "Isfinite": _apply(tf.math.is_finite),
    "Isinf": _apply(tf.math.is_inf),
    "Isnan": _apply(tf.math.is_nan),
    "Less": _apply(tf.less),
    "LessEqual": _apply(tf.less_equal),
    "LogicalAnd": _apply(tf.logical_and),
    "LogicalNot": _apply(tf.logical_not),
    "LogicalOr": _apply(tf.logical_or),
    "LogicalXor": _apply(tf.math.logical_xor),
    "Moveaxis": lambda o, x: tf.transpose(x, find_permutation(o, len(x.shape))),
    "NotEqual": _apply(tf.not_equal),
    "OneHot": lambda o, x: tf.one_hot(tf.cast(x, "int32"), o.num_classes, axis=o.axis),
    "Ravel": lambda o, x: tf.reshape(x, [-1]),
    "Repeat": lambda o, x: tf.repeat(x, o.repeats, axis=o.axis),
    "Reshape": _reshape,
    "Roll": lambda o, x: tf.roll(x, o.shift, o.axis),
    "Slice": lambda o, x, start: tf.slice(x, list(start), list(o.shape)),
    "Sort": lambda o, x: tf.sort(x, axis=o.axis),
    "Split": _split,
    "Squeeze": _squeeze,
    "StopGradient": lambda o, variable: tf.stop_gradient(variable),
    "Swapaxes": lambda o, x: tf.transpose(x, find_permutation(o, len(x.shape))),
    "Take": _take,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": lambda o, x: tf.transpose(x, find_permutation(o, len(x.shape))),
    "Tril": lambda o, x: _triangle(o, x, lower=True),
    "Triu": lambda o, x: _triangle(o, x, lower=False),
    "Unstack": lambda o, x: tf.unstack(x, o.num, axis=o.axis),
}
