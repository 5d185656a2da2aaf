"""Activations by operations that have an integer kernel.

TensorFlow Lite computes ReLU, ReLU6, sigmoid, tanh, softmax, leaky ReLU, PReLU, exp, log, gelu and
rsqrt on int8. The others stay float when they are converted as they are, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.activations import hard_sigmoid
from kdtflite.quantization.rewrites.context import Parts, image_part

__all__ = ["FUSED", "activation_name", "apply", "needs_splitting", "standalone"]

L = keras.layers

FUSED = frozenset({"linear", "relu", "relu6"})
"""Computed inside the convolution, dense layer or addition before it."""

_OWN_KERNEL = frozenset({"sigmoid", "softmax", "tanh", "leaky_relu", "exponential"})
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def activation_name(layer: keras.layers.Layer) -> str:
    """Returns the name of a layer's activation; "linear" where it has none."""
    function = getattr(layer, "activation", None)
    if function is hard_sigmoid:
        return "relu6_sigmoid"  # Keras 3's, of the same name as Keras 2's
    return getattr(function, "__name__", "linear" if function is None else type(function).__name__)


def needs_splitting(layer: keras.layers.Layer) -> bool:
    """Says whether a layer's activation must become an operation after it."""
    return activation_name(layer) not in FUSED


def apply(parts: Parts, name: str, x: Any, part: str = "") -> Any:
    """Returns the activation called `name` of x; its last operation is called `part`.

    An activation that is not known stays as it is, and the proof of the file judges it.
    """
    if name in _BUILT:
        return _BUILT[name](parts, x, part)
    return parts.layer(L.Activation, part, activation=_function(parts, name))(x)


def standalone(parts: Parts, x: Any) -> Any:
    """Rewrites the layers Activation, ELU and ThresholdedReLU, on rows where there are some."""
    layer = parts.source
    rows = parts.has_row(x)
    rank = len(x.shape)
    given, part = (parts.row(x), image_part(rank)) if rows else (x, "")
    if isinstance(layer, L.ELU):
        y = _elu(parts, given, part, alpha=float(layer.alpha))
    elif isinstance(layer, L.ThresholdedReLU):
        above = parts.op(tf.math.greater, _inner(part, "above"))(given, float(layer.theta))
        y = parts.op(tf.where, part)(above, given, 0.0)
    elif activation_name(layer) in _BUILT:
        y = apply(parts, activation_name(layer), given, part)
    else:
        return NotImplemented
    return parts.unrow(y, rank) if rows else y


def _function(parts: Parts, name: str) -> Any:
    own = getattr(parts.source, "activation", None)
    return own if getattr(own, "__name__", None) == name else name


def _inner(part: str, name: str) -> str:
    return f"{part}_{name}" if part else name


def _elu(parts: Parts, x: Any, part: str, *, alpha: float = 1.0, scale: float = 1.0) -> Any:
    """elu(x) = relu(x) + alpha · (exp(min(x, 0)) - 1); selu is it by a factor."""
    low = parts.op(tf.math.minimum, _inner(part, "negative"))(x, 0.0)
    grown = parts.op(tf.math.exp, _inner(part, "exp"))(low)
    if alpha * scale != 1.0:
        grown = parts.op(tf.math.multiply, _inner(part, "scaled_exp"))(grown, alpha * scale)
    bent = parts.op(tf.math.subtract, _inner(part, "bent"))(grown, alpha * scale)
    high = parts.op(tf.nn.relu, _inner(part, "positive"))(x)
    if scale != 1.0:
        high = parts.op(tf.math.multiply, _inner(part, "scaled"))(high, scale)
    return parts.op(tf.math.add, part)(high, bent)


def _selu(parts: Parts, x: Any, part: str) -> Any:
    return _elu(parts, x, part, alpha=_SELU_ALPHA, scale=_SELU_SCALE)


def _softplus(parts: Parts, x: Any, part: str) -> Any:
    """softplus(x) = relu(x) - log(sigmoid(|x|))."""
    size = parts.op(tf.math.abs, _inner(part, "abs"))(x)
    share = parts.op(tf.math.sigmoid, _inner(part, "sigmoid"))(size)
    log = parts.op(tf.math.log, _inner(part, "log"))(share)
    high = parts.op(tf.nn.relu, _inner(part, "positive"))(x)
    return parts.op(tf.math.subtract, part)(high, log)


def _log_sigmoid(parts: Parts, x: Any, part: str) -> Any:
    """log(sigmoid(x)) = min(x, 0) + log(sigmoid(|x|))."""
    size = parts.op(tf.math.abs, _inner(part, "abs"))(x)
    share = parts.op(tf.math.sigmoid, _inner(part, "sigmoid"))(size)
    log = parts.op(tf.math.log, _inner(part, "log"))(share)
    low = parts.op(tf.math.minimum, _inner(part, "negative"))(x, 0.0)
    return parts.op(tf.math.add, part)(low, log)


def _mish(parts: Parts, x: Any, part: str) -> Any:
    """mish(x) = x · tanh(softplus(x))."""
    soft = _softplus(parts, x, _inner(part, "softplus"))
    bent = parts.op(tf.math.tanh, _inner(part, "tanh"))(soft)
    return parts.op(tf.math.multiply, part)(x, bent)


def _swish(parts: Parts, x: Any, part: str) -> Any:
    """swish(x) = x · sigmoid(x)."""
    gate = parts.op(tf.math.sigmoid, _inner(part, "sigmoid"))(x)
    return parts.op(tf.math.multiply, part)(x, gate)


def _hard_sigmoid(parts: Parts, x: Any, part: str) -> Any:
    """hard_sigmoid(x) = relu6(x + 2.5) / 6 · 1.2 = clip(0.2 x + 0.5, 0, 1)."""
    scaled = parts.op(tf.math.multiply, _inner(part, "scaled"))(x, 0.2)
    moved = parts.op(tf.math.add, _inner(part, "moved"))(scaled, 0.5)
    high = parts.op(tf.nn.relu, _inner(part, "positive"))(moved)
    return parts.op(tf.math.minimum, part)(high, 1.0)


def _relu6_sigmoid(parts: Parts, x: Any, part: str) -> Any:
    """Keras 3's hard_sigmoid(x) = relu6(x + 3) / 6."""
    moved = parts.op(tf.math.add, _inner(part, "moved"))(x, 3.0)
    high = parts.op(tf.nn.relu6, _inner(part, "relu6"))(moved)
    return parts.op(tf.math.multiply, part)(high, 1.0 / 6.0)


def _hard_silu(parts: Parts, x: Any, part: str) -> Any:
    """hard_silu(x) = x · relu6(x + 3) / 6 (arXiv 1905.02244)."""
    gate = _relu6_sigmoid(parts, x, _inner(part, "gate"))
    return parts.op(tf.math.multiply, part)(x, gate)


def _softsign(parts: Parts, x: Any, part: str) -> Any:
    """softsign(x) = x / (1 + |x|) = x · rsqrt((1 + |x|)²): there is no integer division."""
    size = parts.op(tf.math.abs, _inner(part, "abs"))(x)
    whole = parts.op(tf.math.add, _inner(part, "moved"))(size, 1.0)
    square = parts.op(tf.math.multiply, _inner(part, "square"))(whole, whole)
    root = parts.op(tf.math.rsqrt, _inner(part, "rsqrt"))(square)
    return parts.op(tf.math.multiply, part)(x, root)


_BUILT: dict[str, Callable[[Parts, Any, str], Any]] = {
    "elu": _elu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_silu,
    "log_sigmoid": _log_sigmoid,
    "mish": _mish,
    "relu6_sigmoid": _relu6_sigmoid,
    "selu": _selu,
    "silu": _swish,
    "softplus": _softplus,
    "softsign": _softsign,
    "swish": _swish,
}
