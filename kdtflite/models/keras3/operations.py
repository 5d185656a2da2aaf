"""Calls a Keras 3 operation on tensors in tf_keras: as a layer, or as TensorFlow calls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.models.activations import KERAS3_ACTIVATIONS, hard_sigmoid, hard_silu
from kdtflite.models.keras3.configs import UnsupportedSettingError, refuse_layer
from kdtflite.models.keras3.tensor_operations import AS_THEY_COME, IN_RESULT_DTYPE, find_permutation
from kdtflite.models.keras_internals import is_symbolic, rename

__all__ = ["call_operation", "to_float32"]

_PAIRS: dict[str, type[keras.layers.Layer]] = {
    "Add": keras.layers.Add,
    "Maximum": keras.layers.Maximum,
    "Minimum": keras.layers.Minimum,
    "Multiply": keras.layers.Multiply,
    "Subtract": keras.layers.Subtract,
}
_UNARY: dict[str, Any] = {
    "Exp": "exponential",
    "HardSigmoid": hard_sigmoid,
    "HardSilu": hard_silu,
    "LogSigmoid": KERAS3_ACTIVATIONS["log_sigmoid"],
    "Relu": "relu",
    "Relu6": "relu6",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Silu": "swish",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}
_ADVICE = (
    "Use a Keras layer that computes the same, other operations of keras.ops, or rebuild the model "
    "with tf_keras (`import tf_keras as keras`)."
)


def call_operation(
    operation: Any, args: list[Any], kwargs: dict[str, Any], *, dtype: str, name: str
) -> Any:
    """Calls an operation of Keras 3 in tf_keras.

    It becomes a layer of tf_keras where one computes the same, since quantization-aware training
    knows layers. Otherwise it becomes TensorFlow calls, which tf_keras turns into TFOpLambda
    layers.

    Args:
        operation: The Keras 3 operation.
        args: Its operands: symbolic tf_keras tensors, numbers, arrays, lists of those.
        kwargs: Its operands passed by name.
        dtype: The dtype of its (first) result.
        name: The name of the layer; if there are several, of the last one.

    Raises:
        UnsupportedModelError: tf_keras has no equivalent.
    """
    kind = type(operation).__name__
    where = f"operation {name!r} ({kind})"
    args, kwargs = _to_arrays((args, kwargs), where)
    given = [*args, *kwargs.values()]
    function = IN_RESULT_DTYPE.get(kind) or AS_THEY_COME.get(kind)
    if not type(operation).__module__.startswith("keras.src.") or (
        function is None and kind != "ReLU"
    ):
        refuse_layer(where, "kdtflite knows no equivalent of it in tf_keras.", _ADVICE)
    if kind in IN_RESULT_DTYPE and dtype != "bool":
        args, kwargs = _cast((args, kwargs), dtype, keep=args[:1] if kind == "Where" else [])
    elif kind in ("Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "NotEqual"):
        args, kwargs = _cast((args, kwargs), _find_common_dtype(given))
    try:
        operands = [*args, *kwargs.values()]
        layer = _find_layer(operation, operands, dtype)
        if layer is not None:
            tensors = [item for item in tf.nest.flatten(operands) if is_symbolic(item)]
            outputs = layer(tensors[0] if len(tensors) == 1 else tensors)
        else:
            assert function is not None  # ReLU is a layer
            outputs = _cast(function(operation, *args, **kwargs), dtype, first=True)
        _name_layers(outputs, given, name)
    except UnsupportedSettingError as error:
        refuse_layer(where, f"{error}.", _ADVICE)
    # TensorFlow and tf_keras raise anything for operands that they cannot take.
    except (TypeError, ValueError, AttributeError, NotImplementedError, tf.errors.OpError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        refuse_layer(where, f"TensorFlow cannot compute it here: {reason[:200]}", _ADVICE)
    return outputs


def to_float32(dtype: str) -> str:
    """Returns the dtype of a tensor in tf_keras: every float becomes float32."""
    return "float32" if "float" in dtype else dtype


def _find_layer(operation: Any, operands: list[Any], dtype: str) -> keras.layers.Layer | None:
    """Returns the layer that computes the operation, or None if TensorFlow has to."""
    if not tf.as_dtype(dtype).is_floating:
        return None
    kind = type(operation).__name__
    if kind == "Concatenate":
        return _find_concatenation(operation, operands[0])
    tensors = [operand for operand in operands if is_symbolic(operand)]
    if len(operands) == len(tensors) == 1:
        return _find_unary_layer(operation, kind, tuple(tensors[0].shape))
    if len(operands) != 2 or any(isinstance(operand, list | tuple) for operand in operands):
        return None
    if len(tensors) == 2:
        # Merge layers align unequal ranks from the left, NumPy and Keras 3 from the right.
        same_rank = len(tensors[0].shape) == len(tensors[1].shape)
        return _PAIRS[kind]() if kind in _PAIRS and same_rank else None
    first = is_symbolic(operands[0])
    number = operands[1] if first else operands[0]
    if not isinstance(number, int | float):
        return None
    scale_offset = {
        "Add": (1.0, number),
        "Multiply": (number, 0.0),
        "Subtract": (1.0, -number) if first else (-1.0, number),
        "Divide": (1.0 / number, 0.0) if first and number else None,
        "TrueDivide": (1.0 / number, 0.0) if first and number else None,
    }.get(kind)
    return None if scale_offset is None else keras.layers.Rescaling(*map(float, scale_offset))


def _find_unary_layer(
    operation: Any, kind: str, shape: tuple[int | None, ...]
) -> keras.layers.Layer | None:
    if kind in _UNARY:
        return keras.layers.Activation(_UNARY[kind])
    if kind == "Negative":
        return keras.layers.Rescaling(-1.0)
    if kind == "ReLU":  # keras.activations.relu with its arguments
        return keras.layers.ReLU(
            operation.max_value, float(operation.negative_slope), float(operation.threshold)
        )
    if kind == "LeakyRelu":
        return keras.layers.LeakyReLU(operation.negative_slope)
    if kind == "Elu":
        return keras.layers.ELU(operation.alpha)
    if kind == "Softmax" and isinstance(operation.axis, int):
        return keras.layers.Softmax(operation.axis)
    if kind in ("Max", "Mean") and getattr(operation, "initial", None) is None:
        return _find_global_pooling(kind, operation, len(shape))
    if kind == "Reshape":
        new = operation.newshape
        sizes = [*shape[1:], *new[1:]]
        is_static = None not in sizes and -1 not in sizes
        if is_static and new[0] in (None, -1) and math.prod(shape[1:]) == math.prod(new[1:]):  # type: ignore[arg-type]
            return keras.layers.Reshape(new[1:])
    if kind in ("Moveaxis", "Swapaxes", "Transpose"):
        order = find_permutation(operation, len(shape))
        return keras.layers.Permute(order[1:]) if order[0] == 0 and len(order) > 1 else None
    return None


def _find_global_pooling(kind: str, operation: Any, rank: int) -> keras.layers.Layer | None:
    axes = operation.axis
    if axes is None or rank not in (3, 4, 5):
        return None
    axes = sorted(axis % rank for axis in ([axes] if isinstance(axes, int) else axes))
    if axes != list(range(1, rank - 1)):
        return None
    name = f"Global{'Average' if kind == 'Mean' else 'Max'}Pooling{rank - 2}D"
    return getattr(keras.layers, name)(keepdims=operation.keepdims)


def _find_concatenation(operation: Any, items: Any) -> keras.layers.Layer | None:
    if not all(is_symbolic(item) for item in items) or len(items) < 2:
        return None
    ranks = {len(item.shape) for item in items}
    return keras.layers.Concatenate(operation.axis) if operation.axis % max(ranks) else None


def _to_arrays(value: Any, where: str) -> Any:
    """Turns constants of any Keras 3 backend into arrays; refuses weights."""
    import keras as keras3

    if isinstance(value, list | tuple):
        return type(value)(_to_arrays(item, where) for item in value)
    if isinstance(value, dict):
        return {key: _to_arrays(item, where) for key, item in value.items()}
    if isinstance(value, keras3.Variable):
        refuse_layer(
            where,
            f"it uses the weight {value.path!r} directly, and only a layer can hold a weight.",
            "Put it into a layer (Dense, EinsumDense, Embedding, BatchNormalization ...), or "
            "rebuild the model with tf_keras (`import tf_keras as keras`).",
        )
    if not is_symbolic(value) and keras3.ops.is_tensor(value):
        value = np.asarray(keras3.ops.convert_to_numpy(value))
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def _cast(value: Any, dtype: str, *, keep: Any = (), first: bool = False) -> Any:
    """Casts the tensors, arrays and numbers in `value`, since TensorFlow does not promote them.

    Args:
        value: A tensor, array or number, or lists and dicts of those.
        dtype: The dtype to cast to.
        keep: Values to leave as they are.
        first: Cast only the first of several results, since the others are indices.
    """
    if any(value is item for item in keep):
        return value
    if isinstance(value, list | tuple):
        if first:
            return [_cast(value[0], dtype), *value[1:]]
        return type(value)(_cast(item, dtype, keep=keep) for item in value)
    if isinstance(value, dict):
        return {key: _cast(item, dtype, keep=keep) for key, item in value.items()}
    if is_symbolic(value):
        return value if value.dtype == dtype else tf.cast(value, dtype)
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, dtype)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if tf.as_dtype(dtype).is_floating else value
    return value


def _find_common_dtype(operands: list[Any]) -> str:
    """Returns the dtype that two operands of a comparison are compared in."""
    import keras as keras3

    kinds = [type(item) if isinstance(item, int | float) else item.dtype.name for item in operands]
    return to_float32(keras3.backend.result_type(*kinds))


def _name_layers(outputs: Any, operands: list[Any], name: str) -> None:
    """Names the layers between `operands` and `outputs`: the last one `name`."""
    known = {id(item) for item in tf.nest.flatten(operands)}
    waiting = [item for item in tf.nest.flatten(outputs) if is_symbolic(item)]
    layers: list[keras.layers.Layer] = []
    while waiting:
        tensor = waiting.pop(0)
        if id(tensor) in known:
            continue
        known.add(id(tensor))
        layer = tensor.node.layer
        if layer not in layers:
            layers.append(layer)
        waiting += tf.nest.flatten(tensor.node.keras_inputs)
    for index, layer in enumerate(layers):
        # Keras' own names have no dot, so that no name occurs twice.
        rename(layer, f"{name}.{index}" if index else name)
