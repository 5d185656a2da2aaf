"""Activations of Keras 3 that tf_keras lacks or defines differently.

They are registered, so that a model that uses them can be saved and loaded.
"""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

__all__ = ["KERAS3_ACTIVATIONS", "hard_sigmoid", "hard_silu", "log_sigmoid"]


@keras.utils.register_keras_serializable(package="kdtflite")
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Keras 3's hard sigmoid, relu6(x + 3) / 6.

    The function of that name in tf_keras is clip(0.2 x + 0.5, 0, 1), with another slope.
    """
    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


@keras.utils.register_keras_serializable(package="kdtflite")
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """Hard SiLU, also called hard swish: x · relu6(x + 3) / 6."""
    return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


@keras.utils.register_keras_serializable(package="kdtflite")
def log_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sigmoid."""
    return tf.math.log_sigmoid(x)


# The name in Keras 3, and the activation for tf_keras: its name, or one of the functions above.
KERAS3_ACTIVATIONS: dict[str, object] = {
    "elu": "elu",
    "exponential": "exponential",
    "gelu": "gelu",
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "hard_swish": hard_silu,
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "log_sigmoid": log_sigmoid,
    "log_softmax": "log_softmax",
    "mish": "mish",
    "relu": "relu",
    "relu6": "relu6",
    "selu": "selu",
    "sigmoid": "sigmoid",
    # TFMOT knows it by this name only.
    "silu": "swish",
    "softmax": "softmax",
    "softplus": "softplus",
    "softsign": "softsign",
    "swish": "swish",
    "tanh": "tanh",
}
