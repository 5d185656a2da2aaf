"""Correlation congruence (Peng et al., arXiv 1904.01802)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from kdtflite.distillation.losses.norms import normalize
from kdtflite.distillation.losses.relations.base import RelationLoss
from kdtflite.errors import ConfigurationError

__all__ = ["CorrelationCongruence"]


class CorrelationCongruence(RelationLoss):
    """Difference between the kernel correlations of a batch's samples.

        L = 1/b² · Σᵢⱼ (k(s_i, s_j) - k(t_i, t_j))²

        k(x, y) = e^(-2γ) · Σ_{p=0}^{P} (2γ)^p / p! · (x · y)^p

    k is the Taylor expansion of the Gaussian kernel e^(-γ‖x - y‖²) of rows of length 1 (Peng et
    al., arXiv 1904.01802, section 3.3). The paper first puts a trained layer of one width
    behind both networks. The b × b matrices do not need it, so the features are compared as they
    are and may differ in width. The paper adds this to the usual soft targets: pass `SoftTargets`
    as well. The default weight of 100 is ours: k differs by some hundredths, and the mean of the
    squares is smaller still.

    A sample's share is its row's mean. Computed in float64.

    Args:
        student_layers: One or more layers of the student, by name. Usually embeddings, after
            pooling.
        teacher_layers: As many layers of the teacher, in the same order.
        gamma: γ, 0.4 in the paper.
        order: P, 2 in the paper.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `gamma` is not a positive number, or `order` is below 1.
    """

    default_name = "correlation_congruence"
    default_weight = 100.0

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        gamma: float = 0.4,
        order: int = 2,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        if not 0 < gamma < math.inf or order < 1:
            raise ConfigurationError(
                "Expected a positive, finite gamma and an order of 1 or more. "
                f"Received: gamma={gamma}, order={order}."
            )
        self.gamma = float(gamma)
        self.order = int(order)

    def _compare_rows(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        difference = self._compute_kernel(student) - self._compute_kernel(teacher)
        batch = tf.cast(tf.shape(student)[0], student.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(tf.square(difference), axis=1), batch)

    def _compute_kernel(self, rows: tf.Tensor) -> tf.Tensor:
        rows = normalize(rows)
        cosines = tf.matmul(rows, rows, transpose_b=True)
        # Horner's scheme: 1 + a·c (1 + a·c/2 (1 + …)) with a = 2γ.
        series = tf.ones_like(cosines)
        for p in range(self.order, 0, -1):
            series = 1.0 + (2.0 * self.gamma / p) * cosines * series
        return math.exp(-2.0 * self.gamma) * series
