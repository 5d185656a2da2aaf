"""Decoupled knowledge distillation (Zhao et al., arXiv 2203.08679)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_not_negative, check_temperature
from kdtflite.distillation.losses.logits.divergence import kl, log_probabilities
from kdtflite.distillation.losses.logits.target_classes import one_hot_labels
from kdtflite.distillation.schedules import Schedule, read_value
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError

__all__ = ["DecoupledKD"]


class DecoupledKD(LogitsLoss):
    """Soft targets in two parts: how likely the true class is, and how the others rank.

        TCKD = KL((p_y, 1 - p_y) ‖ (q_y, 1 - q_y))
        NCKD = KL(p without y ‖ q without y), each renormalized
        L = T² · (α · TCKD + β · NCKD)

    with p and q the teacher's and the student's distributions softened by T, and y the true
    class. `SoftTargets` is TCKD + (1 - p_y) · NCKD: the surer the teacher, the less its ranking
    of the wrong classes counts. Here β sets its weight (Zhao et al., arXiv 2203.08679). With two
    classes NCKD is 0.

    The paper warms the loss up over the first 20 of 240 epochs: give the Distiller a schedule
    as this loss's weight.

    Args:
        temperature: T, positive, or a schedule.
        alpha: α, weight of the target class.
        beta: β, weight of the others. The paper takes 8 on CIFAR-100 (1 to 10, depending on
            the networks) and 0.5 with T = 1 on ImageNet.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: `temperature` is not positive, or a weight is negative.
    """

    default_name = "decoupled_kd"

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        self.alpha = check_not_negative("alpha", alpha)
        self.beta = check_not_negative("beta", beta)

    def __call__(self, student_logits: Any, teacher_logits: Any, labels: Any = None) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.
            labels: Class indices, shape (batch,) or (batch, 1), or distributions over the
                classes, shape (batch, classes), of which the most likely counts. For an index that
                is not a class (such as -1), all classes count as the others.

        Returns:
            The shape of the logits without the last axis, float32: mostly (batch,).

        Raises:
            ConfigurationError: There are no labels.
            ShapeMismatchError: Labels of another shape.
        """
        if labels is None:
            raise ConfigurationError(
                f"{self.name}: expected labels, since the loss treats the true class separately. "
                "Received: labels=None. Train on labeled data, or use SoftTargets."
            )
        t = read_value(self.temperature, tf.float64)
        target = one_hot_labels(labels, student_logits)
        target_student, others_student = _split(log_probabilities(student_logits, t), target)
        target_teacher, others_teacher = _split(log_probabilities(teacher_logits, t), target)
        # A teacher that gives the other classes no probability does not rank them.
        ranks = tf.reduce_any(tf.math.is_finite(others_teacher), axis=-1, keepdims=True)
        others_teacher = tf.where(ranks, others_teacher, others_student)
        divergence = self.alpha * kl(target_teacher, target_student) + self.beta * kl(
            others_teacher, others_student
        )
        return tf.cast(t**2 * divergence, tf.float32)

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(step.student.logits, step.teacher.logits, step.labels)


def _split(log_p: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns ln (p_y, 1 - p_y) and ln p without y, -inf at y."""
    nothing = tf.zeros_like(log_p)
    of_target = tf.reduce_sum(tf.where(target, log_p, nothing), axis=-1, keepdims=True)
    others = tf.where(target, nothing - float("inf"), log_p)
    # 1 - p_y would be 0 for a sure network: the sum of the others is exact.
    rest = tf.reduce_logsumexp(others, axis=-1, keepdims=True)
    return tf.concat([of_target, rest], axis=-1), others - rest
