"""A comprehensive overhaul of feature distillation (Heo et al., arXiv 1904.01866)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.features.adapters import (
    BatchNormalization,
    make_pointwise,
)
from kdtflite.distillation.losses.features.pairs import FeaturePairs, Pair, sum_per_sample
from kdtflite.distillation.losses.features.resizing import to_common_size
from kdtflite.distillation.replicas import sum_over_replicas
from kdtflite.errors import ConfigurationError

__all__ = ["OverhaulFeature"]


class OverhaulFeature(FeaturePairs):
    """Distance to the teacher's features before their ReLU, where it matters.

        t = max(teacher, m_c),  s = BatchNorm(1x1 convolution of student)
        L = Σ over pairs i of 2^(i - last) · Σ over elements of (0 if s ≤ t ≤ 0 else (t - s)²)

    m_c < 0 is the margin of channel c, the expectation of the teacher's negative responses: the
    student should stay below zero where the teacher does, without copying how far. Tap both models
    before the ReLU, at the last layer of a stage (BatchNormalization); list the layers from
    shallow to deep. Each shallower pair counts half, as in the authors' code, whose maps have
    twice the elements there. Where the sizes differ, both maps are average-pooled to the
    smaller, the teacher's after the margin.

    The default weight 10⁻³ is the authors' for CIFAR-100; they take 10⁻⁴ for ImageNet.

    Args:
        student_layers: As in `FeatureLoss`.
        teacher_layers: As in `FeatureLoss`.
        margins: For each pair, m_c for each channel of the teacher, at most 0;
            `compute_margins` gives the paper's for a batch normalization. None estimates them: the
            mean of all negative responses seen so far in training (0 before the first one).
        name: Name of the term in logs.

    Raises:
        ConfigurationError: A margin is above 0 or not finite, or there is not one list per pair.
        ShapeMismatchError: A map is paired with a vector, or there is not one margin per channel.
    """

    default_name = "overhaul_feature"
    default_weight = 1e-3

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        margins: Sequence[Sequence[float]] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        self.margins = None if margins is None else self._check_margins(margins)

    @staticmethod
    def compute_margins(layer: Any) -> list[float]:
        """Returns the margins of the channels of a BatchNormalization of the teacher.

        In closed form, with the responses as normally distributed as the layer makes them, mean
        β and standard deviation |γ|: E[x | x < 0] = β - |γ| φ(β/|γ|) / Φ(-β/|γ|); -3|γ| where
        fewer than one in a thousand is negative (as in the authors' code).

        Args:
            layer: A tf_keras or Keras 3 layer with `gamma` and `beta`.
        """
        beta = np.float64(0.0) if layer.beta is None else np.asarray(layer.beta, np.float64)
        gamma = np.ones_like(beta) if layer.gamma is None else np.asarray(layer.gamma, np.float64)
        beta, deviation = np.broadcast_arrays(beta, np.abs(gamma))
        return [
            _compute_negative_mean(b, d)
            for b, d in zip(beta.ravel(), deviation.ravel(), strict=True)
        ]

    def _check_margins(self, margins: Sequence[Sequence[float]]) -> list[list[float]]:
        checked = [[float(margin) for margin in channels] for channels in margins]
        if len(checked) != len(self.teacher_layers) or not all(
            -math.inf < margin <= 0 for channels in checked for margin in channels
        ):
            raise ConfigurationError(
                f"{self.name}: expected finite margins of at most 0 for each of "
                f"{len(self.teacher_layers)} pairs. Received: margins={margins!r}."
            )
        return checked

    def _make_adapter(self, pair: Pair, index: int) -> keras.layers.Layer:
        pair.check_ranks()
        _, channels = pair.channels()
        margins = None if self.margins is None else self.margins[index]
        if margins is not None and len(margins) != channels:
            raise pair.mismatch(
                f"expected a margin for each of the teacher's {channels} channels, not "
                f"{len(margins)}",
                "Change margins=.",
            )
        adapter = _Regressor(channels, margins)
        adapter.build(pair.student)
        return adapter

    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        teacher = tf.maximum(teacher, adapter.update_margins(teacher))
        student, teacher = to_common_size(student, teacher)
        student = adapter(student)
        counts = tf.cast((student > teacher) | (teacher > 0), tf.float32)
        share = 2.0 ** (index + 1 - len(self.teacher_layers))
        return share * sum_per_sample(counts * tf.square(teacher - student))


class _Regressor(keras.layers.Layer):
    """Turns the student's features into the teacher's, and holds the teacher's margins."""

    def __init__(self, channels: int, margins: Sequence[float] | None) -> None:
        super().__init__(dtype="float32")
        # He's initialization by the outputs, as in the authors' code.
        initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        self.convolution = make_pointwise(channels, use_bias=False, kernel_initializer=initializer)
        self.normalization = BatchNormalization()
        self.margins = margins

    def build(self, input_shape: Any) -> None:
        channels = self.convolution.units
        self.convolution.build(input_shape)
        self.normalization.build((*input_shape[:-1], channels))
        if self.margins is None:
            # Sums over a whole training outgrow float32, whose steps at 2^24 are 1.
            options = {
                "dtype": "float64",
                "initializer": "zeros",
                "trainable": False,
                "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
            }
            self.negative_sum = self.add_weight("negative_sum", [channels], **options)
            self.negative_count = self.add_weight("negative_count", [channels], **options)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.normalization(self.convolution(inputs))

    def update_margins(self, teacher: tf.Tensor) -> tf.Tensor:
        """Returns the margins, shape (channels,), after an update of their estimate."""
        if self.margins is not None:
            return tf.constant(self.margins, tf.float32)
        axes = range(teacher.shape.rank - 1)
        wide = tf.cast(teacher, tf.float64)
        total = tf.reduce_sum(tf.minimum(wide, 0.0), axes)
        count = tf.reduce_sum(tf.cast(wide < 0, tf.float64), axes)
        # Computed, not read back from the variables: all replicas use the same margins at once.
        total = self.negative_sum + sum_over_replicas(total)
        count = self.negative_count + sum_over_replicas(count)
        self.negative_sum.assign(total)
        self.negative_count.assign(count)
        return tf.cast(tf.stop_gradient(tf.math.divide_no_nan(total, count)), tf.float32)


def _compute_negative_mean(mean: float, deviation: float) -> float:
    if deviation == 0:
        return min(mean, 0.0)
    z = mean / deviation
    below = 0.5 * math.erfc(z / math.sqrt(2))
    if below < 1e-3:
        return -3.0 * deviation
    return mean - deviation * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / below
