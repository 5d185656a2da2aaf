"""Rewrites activations into operations that have an integer kernel.

TensorFlow Lite computes ReLU, ReLU6, sigmoid, tanh, softmax, leaky ReLU, PReLU, exp, log, gelu and
rsqrt on int8. The others would stay float at conversion, without a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.activations import hard_sigmoid
from kdtflite.models.layer_names import name_image
from kdtflite.quantization.rewrites.context import LayerParts

__all__ = [
    "FUSED",
    "RELUS",
    "apply",
    "get_activation_name",
    "must_be_split",
    "rewrite_activation",
]

L = keras.layers

RELUS = frozenset({"relu", "relu6"})
FUSED = RELUS | {"linear"}
"""Computed inside the convolution, dense layer or addition before it."""

_OWN_KERNEL = frozenset({"sigmoid", "softmax", "tanh", "leaky_relu", "exponential"})
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def get_activation_name(layer: keras.layers.Layer) -> str:
    """Returns the name of a layer's activation, "linear" for a layer without one."""
    function = getattr(layer, "activation", None)
    if function is hard_sigmoid:
        return "relu6_sigmoid"  # Keras 3's, of the same name as Keras 2's
    return getattr(function, "__name__", "linear" if function is None else type(function).__name__)


def must_be_split(layer: keras.layers.Layer) -> bool:
    """Whether a layer's activation must become an operation after it."""
    return get_activation_name(layer) not in FUSED


def apply(parts: LayerParts, name: str, x: Any, part: str = "") -> Any:
    """Returns the activation called `name` of x; its last operation is called `part`.

    An unknown activation stays as it is; the proof of the file judges it.
    """
    if name in _BUILDERS:
        return _BUILDERS[name](parts, x, part)
    return parts.add_layer(L.Activation, part, activation=_find_function(parts, name))(x)


def rewrite_activation(parts: LayerParts, x: Any) -> Any:
    """Activation, ELU and ThresholdedReLU, on the image of one row if there is one."""
    layer = parts.source
    rows = parts.has_row(x)
    rank = len(x.shape)
    given, part = (parts.as_row(x), name_image(rank)) if rows else (x, "")
    if isinstance(layer, L.ELU):
        y = _build_elu(parts, given, part, alpha=float(layer.alpha))
    elif isinstance(layer, L.ThresholdedReLU):
        above = parts.add_op(tf.math.greater, _join(part, "above"))(given, float(layer.theta))
        y = parts.add_op(tf.where, part)(above, given, 0.0)
    elif get_activation_name(layer) in _BUILDERS:
        y = apply(parts, get_activation_name(layer), given, part)
    else:
        return NotImplemented
    return parts.from_row(y, rank) if rows else y


def _find_function(parts: LayerParts, name: str) -> Any:
    own = getattr(parts.source, "activation", None)
    return own if getattr(own, "__name__", None) == name else name


def _join(part: str, name: str) -> str:
    return f"{part}_{name}" if part else name


def _build_elu(
    parts: LayerParts, x: Any, part: str, *, alpha: float = 1.0, scale: float = 1.0
) -> Any:
    """elu(x) = relu(x) + alpha · (exp(min(x, 0)) - 1); selu is a multiple of it."""
    low = parts.add_op(tf.math.minimum, _join(part, "negative"))(x, 0.0)
    grown = parts.add_op(tf.math.exp, _join(part, "exp"))(low)
    if alpha * scale != 1.0:
        grown = parts.add_op(tf.math.multiply, _join(part, "scaled_exp"))(grown, alpha * scale)
    bent = parts.add_op(tf.math.subtract, _join(part, "bent"))(grown, alpha * scale)
    high = parts.add_op(tf.nn.relu, _join(part, "positive"))(x)
    if scale != 1.0:
        high = parts.add_op(tf.math.multiply, _join(part, "scaled"))(high, scale)
    return parts.add_op(tf.math.add, part)(high, bent)


def _build_selu(parts: LayerParts, x: Any, part: str) -> Any:
    return _build_elu(parts, x, part, alpha=_SELU_ALPHA, scale=_SELU_SCALE)


def _build_softplus(parts: LayerParts, x: Any, part: str) -> Any:
    """softplus(x) = relu(x) - log(sigmoid(|x|))."""
    size = parts.add_op(tf.math.abs, _join(part, "abs"))(x)
    share = parts.add_op(tf.math.sigmoid, _join(part, "sigmoid"))(size)
    log = parts.add_op(tf.math.log, _join(part, "log"))(share)
    high = parts.add_op(tf.nn.relu, _join(part, "positive"))(x)
    return parts.add_op(tf.math.subtract, part)(high, log)


def _build_log_sigmoid(parts: LayerParts, x: Any, part: str) -> Any:
    """log(sigmoid(x)) = min(x, 0) + log(sigmoid(|x|))."""
    size = parts.add_op(tf.math.abs, _join(part, "abs"))(x)
    share = parts.add_op(tf.math.sigmoid, _join(part, "sigmoid"))(size)
    log = parts.add_op(tf.math.log, _join(part, "log"))(share)
    low = parts.add_op(tf.math.minimum, _join(part, "negative"))(x, 0.0)
    return parts.add_op(tf.math.add, part)(low, log)


def _build_mish(parts: LayerParts, x: Any, part: str) -> Any:
    """mish(x) = x · tanh(softplus(x))."""
    soft = _build_softplus(parts, x, _join(part, "softplus"))
    bent = parts.add_op(tf.math.tanh, _join(part, "tanh"))(soft)
    return parts.add_op(tf.math.multiply, part)(x, bent)


def _build_swish(parts: LayerParts, x: Any, part: str) -> Any:
    """swish(x) = x · sigmoid(x)."""
    gate = parts.add_op(tf.math.sigmoid, _join(part, "sigmoid"))(x)
    return parts.add_op(tf.math.multiply, part)(x, gate)


def _build_hard_sigmoid(parts: LayerParts, x: Any, part: str) -> Any:
    """hard_sigmoid(x) = relu6(x + 2.5) / 6 · 1.2 = clip(0.2 x + 0.5, 0, 1)."""
    scaled = parts.add_op(tf.math.multiply, _join(part, "scaled"))(x, 0.2)
    moved = parts.add_op(tf.math.add, _join(part, "moved"))(scaled, 0.5)
    high = parts.add_op(tf.nn.relu, _join(part, "positive"))(moved)
    return parts.add_op(tf.math.minimum, part)(high, 1.0)


def _build_relu6_sigmoid(parts: LayerParts, x: Any, part: str) -> Any:
    """Keras 3's hard_sigmoid(x) = relu6(x + 3) / 6."""
    moved = parts.add_op(tf.math.add, _join(part, "moved"))(x, 3.0)
    high = parts.add_op(tf.nn.relu6, _join(part, "relu6"))(moved)
    return parts.add_op(tf.math.multiply, part)(high, 1.0 / 6.0)


def _build_hard_silu(parts: LayerParts, x: Any, part: str) -> Any:
    """hard_silu(x) = x · relu6(x + 3) / 6 (arXiv 1905.02244)."""
    gate = _build_relu6_sigmoid(parts, x, _join(part, "gate"))
    return parts.add_op(tf.math.multiply, part)(x, gate)


def _build_softsign(parts: LayerParts, x: Any, part: str) -> Any:
    """softsign(x) = x / (1 + |x|) = x · rsqrt((1 + |x|)²): there is no integer division."""
    size = parts.add_op(tf.math.abs, _join(part, "abs"))(x)
    whole = parts.add_op(tf.math.add, _join(part, "moved"))(size, 1.0)
    square = parts.add_op(tf.math.multiply, _join(part, "square"))(whole, whole)
    root = parts.add_op(tf.math.rsqrt, _join(part, "rsqrt"))(square)
    return parts.add_op(tf.math.multiply, part)(x, root)


_BUILDERS: dict[str, Callable[[LayerParts, Any, str], Any]] = {
    "elu": _build_elu,
    "hard_sigmoid": _build_hard_sigmoid,
    "hard_silu": _build_hard_silu,
    "log_sigmoid": _build_log_sigmoid,
    "mish": _build_mish,
    "relu6_sigmoid": _build_relu6_sigmoid,
    "selu": _build_selu,
    "silu": _build_swish,
    "softplus": _build_softplus,
    "softsign": _build_softsign,
    "swish": _build_swish,
}
