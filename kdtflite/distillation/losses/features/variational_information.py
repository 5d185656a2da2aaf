"""Variational information distillation (Ahn et al., arXiv 1904.05835)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.features.adapters import make_pointwise
from kdtflite.distillation.losses.features.pairs import FeaturePairs, Pair, mean_per_sample
from kdtflite.distillation.losses.features.resizing import to_common_size
from kdtflite.errors import ConfigurationError

__all__ = ["VariationalInformation"]


class VariationalInformation(FeaturePairs):
    """How unlikely the teacher's features are, given the student's: a bound on their information.

        L = Σ over pairs of mean over elements of ½ ((t - μ(s))² / σ_c² + log σ_c²)
        σ_c² = softplus(α_c) + eps, learned for each channel c of the teacher

    The paper's negative log-likelihood without its constant, a mean where it has a sum. The mean
    network μ has three 1x1 convolutions (Dense layers for vectors) without bias, with ReLU
    between, as in the authors' code. L can be negative. The default weight 1 goes with the mean
    (Tian et al., arXiv 1910.10699). Where the sizes differ, both maps are average-pooled to the
    smaller size.

    Args:
        student_layers: As in `FeatureLoss`.
        teacher_layers: As in `FeatureLoss`.
        hidden_channels: Width of μ's two hidden layers; None for the teacher's channels.
        init_pred_var: The initial σ².
        eps: The smallest σ².
        name: Name of the term in logs.

    Raises:
        ConfigurationError: Not 0 < eps < init_pred_var, or `hidden_channels` is not positive.
        ShapeMismatchError: A map is paired with a vector.
    """

    default_name = "variational_information"

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        hidden_channels: int | None = None,
        init_pred_var: float = 5.0,
        eps: float = 1e-5,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        if not 0 < eps < init_pred_var < math.inf:
            raise ConfigurationError(
                f"{self.name}: expected 0 < eps < init_pred_var, finite. Received: eps={eps}, "
                f"init_pred_var={init_pred_var}."
            )
        if hidden_channels is not None and hidden_channels < 1:
            raise ConfigurationError(
                f"{self.name}: expected positive hidden_channels, or None. "
                f"Received: {hidden_channels}."
            )
        self.hidden_channels = hidden_channels
        self.init_pred_var = float(init_pred_var)
        self.eps = float(eps)

    def _make_adapter(self, pair: Pair, index: int) -> keras.layers.Layer:
        pair.check_ranks()
        _, channels = pair.channels()
        adapter = _Gaussian(
            self.hidden_channels or channels, channels, self.init_pred_var, self.eps
        )
        adapter.build(pair.student)
        return adapter

    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        student, teacher = to_common_size(student, teacher)
        mean, variance = adapter(student)
        return 0.5 * mean_per_sample(tf.square(teacher - mean) / variance + tf.math.log(variance))


class _Gaussian(keras.layers.Layer):
    """The teacher's features as predicted from the student's: means, one variance per channel."""

    def __init__(self, hidden: int, channels: int, variance: float, eps: float) -> None:
        super().__init__(dtype="float32")
        self.convolutions = [
            make_pointwise(hidden, activation="relu", use_bias=False),
            make_pointwise(hidden, activation="relu", use_bias=False),
            make_pointwise(channels, use_bias=False),
        ]
        self.eps = eps
        # The inverse of softplus, written so that it does not overflow.
        above = variance - eps
        self._alpha = above + math.log(-math.expm1(-above))

    def build(self, input_shape: Any) -> None:
        for convolution in self.convolutions:
            convolution.build(input_shape)
            input_shape = (*input_shape[:-1], convolution.units)
        self.alpha = self.add_weight(
            "alpha", input_shape[-1:], initializer=keras.initializers.Constant(self._alpha)
        )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        mean = inputs
        for convolution in self.convolutions:
            mean = convolution(mean)
        return mean, tf.math.softplus(self.alpha) + self.eps
