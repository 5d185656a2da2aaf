"""Soft and hard cross-entropy with the teacher, mixed (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_fraction, check_temperature
from kdtflite.distillation.losses.logits.divergence import cross_entropy, log_probabilities
from kdtflite.distillation.losses.logits.target_classes import one_hot_decisions
from kdtflite.distillation.schedules import Schedule, read_value

__all__ = ["CrossEntropyDistillation"]


class CrossEntropyDistillation(LogitsLoss):
    """Cross-entropy with the teacher's softened distribution and with its decision.

        H(p, q) = -Σ_c p_c · ln q_c
        L = s · T² · H(softmax(z_teacher / T), softmax(z_student / T))
            + (1 - s) · H(onehot(argmax z_teacher), softmax(z_student))

    Hinton et al. (arXiv 1503.02531, section 2) mix the same two, with the true label in the
    second; here both come from the teacher, so it serves samples without labels. The soft part
    has the gradient of `SoftTargets`; its value is larger by T² times the teacher's entropy, so
    it does not fall to 0.

    Args:
        temperature: T, positive, or a schedule.
        soft_weight: s, from 0 (`HardTargets`) to 1 (the soft part alone), or a schedule.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `temperature` is not positive, or `soft_weight` is outside 0 to 1.
    """

    default_name = "cross_entropy_distillation"

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        *,
        soft_weight: float | Schedule = 0.5,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        self.soft_weight = check_fraction("soft_weight", soft_weight)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        t = read_value(self.temperature, tf.float64)
        share = read_value(self.soft_weight, tf.float64)
        teacher = tf.exp(log_probabilities(teacher_logits, t))
        soft = cross_entropy(teacher, log_probabilities(student_logits, t))
        hard = cross_entropy(one_hot_decisions(teacher_logits), log_probabilities(student_logits))
        return tf.cast(share * t**2 * soft + (1.0 - share) * hard, tf.float32)
