"""Multi-level logit distillation (Jin, Wang & Lin, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_temperature
from kdtflite.distillation.losses.logits.divergence import kl, log_probabilities
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError

__all__ = ["MultiLevelLogits"]


class MultiLevelLogits(LogitsLoss):
    """Alignment of predictions per sample, per pair of samples and per pair of classes.

        instance = mean over samples of T² · KL(p ‖ q)
        batch = ‖p pᵀ - q qᵀ‖² / samples
        class = ‖pᵀ p - qᵀ q‖² / classes
        L = mean over T of (instance + batch + class)

    with p and q, shape (samples, classes), the teacher's and the student's distributions
    softened by T. The batch term shows the student which samples the teacher finds alike, the
    class term which classes; several temperatures make all three depend less on the teacher's
    calibration (Jin, Wang & Lin, "Multi-Level Logit Distillation", CVPR 2023). The paper sums
    over its five temperatures and over two views of each sample: weigh this loss by 5 for its
    sum over the temperatures.

    A sample's value is its own divergence, its row of the pairs of samples, and the term of the
    classes, which belongs to the whole batch; the mean over the batch is L. Positions of
    sequences count as samples, except for masked ones. Memory grows with the square of the number
    of samples.

    Args:
        temperatures: The values of T, each positive.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: There is no temperature, or one is not a positive number.
    """

    default_name = "multi_level_logits"

    def __init__(
        self,
        *,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        if not temperatures:
            raise ConfigurationError(
                "Expected one or more temperatures. Received: temperatures=()."
            )
        for temperature in temperatures:
            check_temperature(temperature)
        self.temperatures = tuple(float(temperature) for temperature in temperatures)

    def __call__(self, student_logits: Any, teacher_logits: Any, mask: Any = None) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.
            mask: Which rows of logits count, bool, shape of the logits without the last axis.

        Returns:
            The shape of the logits without the last axis, float32: mostly (batch,).
        """
        shape = tf.shape(student_logits)
        student, teacher = (
            tf.reshape(tf.cast(logits, tf.float64), [-1, shape[-1]])
            for logits in (student_logits, teacher_logits)
        )
        counts = tf.ones_like(student[:, :1])
        if mask is not None:
            counts = tf.reshape(tf.cast(mask, tf.float64), [-1, 1])
        levels = [_compare_at(student, teacher, counts, t) for t in self.temperatures]
        values = tf.add_n(levels) / len(levels)
        return tf.cast(tf.reshape(values, shape[:-1]), tf.float32)

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(step.student.logits, step.teacher.logits, step.counted)


def _compare_at(student: tf.Tensor, teacher: tf.Tensor, counts: tf.Tensor, t: float) -> tf.Tensor:
    """Returns instance + batch + class at one temperature, shape (samples,)."""
    log_q, log_p = log_probabilities(student, t), log_probabilities(teacher, t)
    q, p = tf.exp(log_q) * counts, tf.exp(log_p) * counts
    pairs = tf.matmul(p, p, transpose_b=True) - tf.matmul(q, q, transpose_b=True)
    classes = tf.matmul(p, p, transpose_a=True) - tf.matmul(q, q, transpose_a=True)
    of_classes = tf.reduce_sum(tf.reduce_mean(classes**2, axis=0))
    return t**2 * kl(log_p, log_q) + tf.reduce_sum(pairs**2, axis=1) + of_classes
