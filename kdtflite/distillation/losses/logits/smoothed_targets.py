"""Soft targets mixed with the uniform distribution (Szegedy et al., arXiv 1512.00567)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_fraction, check_temperature
from kdtflite.distillation.losses.logits.divergence import kl, log_probabilities
from kdtflite.distillation.schedules import Schedule, read_value

__all__ = ["SmoothedTargets"]


class SmoothedTargets(LogitsLoss):
    """Divergence of the student from the teacher's distribution after label smoothing.

        p = (1 - ε) · softmax(z_teacher / T) + ε / classes
        L = T² · KL(p ‖ softmax(z_student / T))

    Label smoothing (Szegedy et al., arXiv 1512.00567, section 7), applied to soft targets in
    place of true labels. It keeps a student from growing as certain as an overconfident teacher,
    and keeps the order of the classes, which a teacher trained with smoothing partly loses
    (Müller et al., arXiv 1906.02629).

    Args:
        temperature: T, positive, or a schedule.
        label_smoothing: ε, from 0 (`SoftTargets`) to 1, or a schedule. Szegedy et al.
            use 0.1.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `temperature` is not positive, or `label_smoothing` is outside 0 to 1.
    """

    default_name = "smoothed_targets"

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        *,
        label_smoothing: float | Schedule = 0.1,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        self.label_smoothing = check_fraction("label_smoothing", label_smoothing)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        t = read_value(self.temperature, tf.float64)
        smoothing = tf.convert_to_tensor(read_value(self.label_smoothing, tf.float64), tf.float64)
        teacher = log_probabilities(teacher_logits, t)
        uniform = tf.zeros_like(teacher) - tf.math.log(tf.cast(tf.shape(teacher)[-1], tf.float64))
        smoothed = tf.reduce_logsumexp(
            tf.stack([tf.math.log1p(-smoothing) + teacher, tf.math.log(smoothing) + uniform]),
            axis=0,
        )
        divergence = kl(smoothed, log_probabilities(student_logits, t))
        return tf.cast(t**2 * divergence, tf.float32)
