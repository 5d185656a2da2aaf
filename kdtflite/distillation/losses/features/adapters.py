"""The layers that adapters consist of."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.replicas import sum_over_replicas

__all__ = ["BatchNormalization", "make_pointwise"]


def make_pointwise(channels: int, **kwargs: Any) -> keras.layers.Dense:
    """Returns a 1x1 convolution over any number of axes: a Dense layer on the last one.

    Args:
        channels: Number of output channels.
        **kwargs: Further arguments of `keras.layers.Dense`.
    """
    return keras.layers.Dense(channels, dtype="float32", **kwargs)


class BatchNormalization(keras.layers.Layer):
    """Batch normalization by the statistics of the global batch, always in training.

    Keras' own layer computes the statistics per replica or, synchronized, subtracts two large
    numbers where the mean is large; an empty batch turns its moving statistics into NaN.

    Args:
        momentum: Momentum of the moving statistics, which are kept but not used.
        epsilon: A number added to the variance.
    """

    def __init__(self, *, momentum: float = 0.9, epsilon: float = 1e-5) -> None:
        super().__init__(dtype="float32")
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, input_shape: Any) -> None:  # noqa: D102
        channels = [input_shape[-1]]
        self.gamma = self.add_weight("gamma", channels, initializer="ones")
        self.beta = self.add_weight("beta", channels, initializer="zeros")
        moving = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.moving_mean = self.add_weight("mean", channels, initializer="zeros", **moving)
        self.moving_variance = self.add_weight("variance", channels, initializer="ones", **moving)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:  # noqa: D102
        axes = range(inputs.shape.rank - 1)
        count = sum_over_replicas(tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32))
        count_or_1 = tf.maximum(count, 1.0)
        # Moments around a point near the mean, which float32 cannot hold where it is large.
        near = tf.stop_gradient(sum_over_replicas(tf.reduce_sum(inputs, axes)) / count_or_1)
        shifted = inputs - near
        sums = tf.stack([tf.reduce_sum(shifted, axes), tf.reduce_sum(tf.square(shifted), axes)])
        rest, squares = tf.unstack(sum_over_replicas(sums) / count_or_1)
        variance = squares - tf.square(rest)
        step = (1.0 - self.momentum) * tf.cast(count > 0, tf.float32)
        for moving, value in ((self.moving_mean, near + rest), (self.moving_variance, variance)):
            moving.assign(moving + step * (value - moving))
        scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
        return (shifted - rest) * scale + self.beta
