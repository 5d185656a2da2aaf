"""The layers and operations that TensorFlow Lite computes in float alone."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.graph import Call
from kdtflite.quantization.kernels import get_operation

__all__ = ["explain_float"]

# Found by converting each: the converter fails, or leaves a float operator in the file.
_OPERATIONS = frozenset(
    {
        *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "cos", "cosh"),
        *("cumprod", "cumsum", "digamma", "erf", "erfc", "floor", "floor_div", "floormod"),
        *("lgamma", "linalg.band_part", "mod", "one_hot", "rint", "round", "sign", "sin", "sinh"),
        *("sort", "tan", "tensor_scatter_nd_update"),
    }
)
_LOOPS = (keras.layers.Bidirectional, keras.layers.RNN)
_LAYERS = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)


def explain_float(call: Call) -> str | None:
    """Returns why no integer file can hold a call of a model from `rewrite`, or None."""
    layer = call.layer
    if isinstance(layer, _LOOPS):
        return "it could not be unrolled, and an integer file holds no loop over steps"
    if isinstance(layer, _LAYERS):
        return f"TensorFlow Lite computes {type(layer).__name__} in float"
    operation = get_operation(layer)
    if operation is None:
        return None
    if operation in _OPERATIONS or operation.startswith("signal."):
        return f"TensorFlow Lite computes tf.{layer.symbol} in float"
    if operation == "cast" and _casts_to_real(call):
        return "TensorFlow Lite casts between whole and real numbers in float"
    return None


def _casts_to_real(call: Call) -> bool:
    given = [tensor.dtype for tensor in call.inputs]
    made = [tensor.dtype for tensor in tf.nest.flatten(call.outputs)]
    return any(one.is_floating != other.is_floating for one in given for other in made)
