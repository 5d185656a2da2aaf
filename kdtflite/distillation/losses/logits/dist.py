"""DIST: correlations in place of probabilities (Huang et al., arXiv 2205.10536)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_not_negative, check_temperature
from kdtflite.distillation.losses.logits.divergence import log_probabilities
from kdtflite.distillation.losses.logits.standardize import unit_deviations
from kdtflite.distillation.schedules import Schedule, read_value
from kdtflite.distillation.step import Step

__all__ = ["DIST"]


class DIST(LogitsLoss):
    """Correlation of the student's softened outputs with the teacher's, by sample and by class.

        inter = mean over samples of 1 - ρ(p[i, :], q[i, :])
        intra = mean over classes of 1 - ρ(p[:, c], q[:, c])
        L = T² · (β · inter + γ · intra)

    with p and q the teacher's and the student's distributions softened by T, over a batch, and ρ
    Pearson's correlation. The student keeps the order and relative distances of the teacher's
    outputs without having to match their size, which a strong teacher makes hard (Huang et al.,
    arXiv 2205.10536; T² keeps the gradient's size as in `SoftTargets`, and is 1 by default).

    A sample's value is its own correlation and its share of those of the classes; the mean over
    the batch is L. Where a row or column of either has no variance, such as the columns of a batch
    of one, ρ counts as 0: it adds 1 and no gradient. Positions of sequences count as samples,
    except for masked ones.

    Args:
        temperature: T, positive, or a schedule. The paper takes 1 on ImageNet, 4 on
            CIFAR-100.
        beta: β, weight of the correlation over the classes.
        gamma: γ, weight of the correlation over the batch.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: `temperature` is not positive, or a weight is negative.
    """

    default_name = "dist"

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        self.beta = check_not_negative("beta", beta)
        self.gamma = check_not_negative("gamma", gamma)

    def __call__(self, student_logits: Any, teacher_logits: Any, mask: Any = None) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.
            mask: Which rows of logits count, bool, shape of the logits without the last axis.

        Returns:
            The shape of the logits without the last axis, float32: mostly (batch,).
        """
        t = read_value(self.temperature, tf.float64)
        shape = tf.shape(student_logits)
        student, teacher = (
            tf.reshape(log_probabilities(logits, t), [-1, shape[-1]])
            for logits in (student_logits, teacher_logits)
        )
        counted = tf.ones_like(student[:, :1], tf.bool)
        if mask is not None:
            counted = tf.reshape(tf.cast(mask, tf.bool), [-1, 1])
        number = tf.reduce_sum(tf.cast(counted, tf.float64))
        inter = tf.reduce_sum(_correlate(student, teacher, 1, None), axis=1)
        intra = number * tf.reduce_mean(_correlate(student, teacher, 0, counted), axis=1)
        values = t**2 * (self.beta * inter + self.gamma * intra)
        return tf.cast(tf.reshape(values, shape[:-1]), tf.float32)

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(step.student.logits, step.teacher.logits, step.counted)


def _correlate(
    log_q: tf.Tensor, log_p: tf.Tensor, axis: int, counted: tf.Tensor | None
) -> tf.Tensor:
    """Returns elements whose sum along `axis` is 1 - ρ."""
    q, q_varies = unit_deviations(_exponentiate(log_q, axis), axis, counted)
    p, p_varies = unit_deviations(_exponentiate(log_p, axis), axis, counted)
    # As half the squared distance of two vectors of length 1, 1 - p·q does not cancel when the
    # student equals its teacher.
    missing = tf.cast(~q_varies, tf.float64) + tf.cast(~p_varies, tf.float64)
    along = tf.maximum(tf.cast(tf.shape(log_q)[axis], tf.float64), 1.0)
    return ((q - p) ** 2 + missing / along) / 2


def _exponentiate(log_p: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns probabilities divided by the largest along `axis`, which leaves ρ as it is.

    Otherwise a class that is very unlikely for all samples would underflow.
    """
    largest = tf.stop_gradient(tf.reduce_max(log_p, axis, keepdims=True))
    return tf.exp(log_p - tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest)))
