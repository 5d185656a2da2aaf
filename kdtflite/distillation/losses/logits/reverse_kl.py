"""Reverse divergence (Gu et al., MiniLLM, arXiv 2306.08543)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_temperature
from kdtflite.distillation.losses.logits.divergence import kl, log_probabilities
from kdtflite.distillation.schedules import Schedule, read_value

__all__ = ["ReverseKL"]


class ReverseKL(LogitsLoss):
    """Divergence of the teacher's softened distribution from the student's.

        L = T² · KL(softmax(z_student / T) ‖ softmax(z_teacher / T))

    The other direction than `SoftTargets`. It seeks modes: a student too small to follow the
    whole distribution keeps to the teacher's likely classes instead of giving some probability
    to everything (Gu et al., arXiv 2306.08543, section 2.1).

    Args:
        temperature: T, positive, or a schedule. The paper uses 1.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32. Infinite, and useless for training, where
        the teacher rules out a class (logit -inf) and the student does not; `JensenShannon` is
        finite there.

    Raises:
        ConfigurationError: `temperature` is not a positive number.
    """

    default_name = "reverse_kl"

    def __init__(self, temperature: float | Schedule = 1.0, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        t = read_value(self.temperature, tf.float64)
        divergence = kl(log_probabilities(student_logits, t), log_probabilities(teacher_logits, t))
        return tf.cast(t**2 * divergence, tf.float32)
