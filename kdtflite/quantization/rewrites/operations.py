"""Rewrites TensorFlow operations without an integer kernel into operations that have one."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.quantization.graph import is_symbolic
from kdtflite.quantization.rewrites import activations
from kdtflite.quantization.rewrites.context import LayerParts

__all__ = [
    "rewrite_cast",
    "rewrite_deviation",
    "rewrite_elu",
    "rewrite_log_sigmoid",
    "rewrite_negative",
    "rewrite_norm",
    "rewrite_power",
    "rewrite_square",
]


def rewrite_cast(parts: LayerParts, x: Any, dtype: Any, name: Any = None) -> Any:
    """A cast of booleans to real numbers as a choice between 1 and 0."""
    del name
    if not is_symbolic(x) or x.dtype != tf.bool or tf.as_dtype(dtype) != tf.float32:
        return NotImplemented
    return parts.add_op(tf.where)(x, 1.0, 0.0)


def rewrite_square(parts: LayerParts, x: Any, name: Any = None) -> Any:
    """square(x) = x · x."""
    del name
    return parts.add_op(tf.math.multiply)(x, x) if is_symbolic(x) else NotImplemented


def rewrite_negative(parts: LayerParts, x: Any, name: Any = None) -> Any:
    """-x = -1 · x."""
    del name
    return parts.add_op(tf.math.multiply)(x, -1.0) if _is_float(x) else NotImplemented


def rewrite_elu(parts: LayerParts, features: Any, name: Any = None) -> Any:
    """tf.nn.elu, as the layer."""
    del name
    return activations.apply(parts, "elu", features)


def rewrite_log_sigmoid(parts: LayerParts, x: Any, name: Any = None) -> Any:
    """log_sigmoid(x) = min(x, 0) + log(sigmoid(|x|))."""
    del name
    return activations.apply(parts, "log_sigmoid", x)


def rewrite_power(parts: LayerParts, x: Any, y: Any, name: Any = None) -> Any:
    """aˣ = exp(x · ln a), of a positive number a."""
    del name
    base = 0.0 if is_symbolic(x) else np.asarray(x)
    if not _is_float(y) or np.size(base) != 1 or base <= 0:
        return NotImplemented
    scaled = parts.add_op(tf.math.multiply, "scaled")(y, float(np.log(base)))
    return parts.add_op(tf.math.exp)(scaled)


def rewrite_deviation(
    parts: LayerParts, input_tensor: Any, axis: Any = None, keepdims: Any = False, name: Any = None
) -> Any:
    """The standard deviation as the root of the variance, whose gradient is infinite at 0."""
    del name
    variance = parts.add_op(tf.math.reduce_variance, "variance")
    return parts.add_op(tf.math.sqrt)(variance(input_tensor, axis=axis, keepdims=keepdims))


def rewrite_norm(
    parts: LayerParts,
    tensor: Any = None,
    ord: Any = "euclidean",
    axis: Any = None,
    keepdims: Any = None,
    name: Any = None,
    input_tensor: Any = None,
) -> Any:
    """The Euclidean length as the root of the sum of squares."""
    del name
    x = input_tensor if tensor is None else tensor
    several = isinstance(axis, list | tuple) and len(axis) > 1
    if not _is_float(x) or ord not in ("euclidean", "fro", 2) or (ord == 2 and several):
        return NotImplemented
    square = parts.add_op(tf.math.multiply, "square")(x, x)
    total = parts.add_op(tf.math.reduce_sum, "sum")(square, axis=axis, keepdims=bool(keepdims))
    return parts.add_op(tf.math.sqrt)(total)


def _is_float(x: Any) -> bool:
    return is_symbolic(x) and bool(x.dtype.is_floating)
