"""Soft targets (Hinton, Vinyals & Dean, arXiv 1503.02531)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_temperature
from kdtflite.distillation.losses.logits.divergence import kl, log_probabilities
from kdtflite.distillation.schedules import Schedule, read_value

__all__ = ["SoftTargets"]


class SoftTargets(LogitsLoss):
    """Divergence of the student's softened distribution from the teacher's.

        L = T² · KL(softmax(z_teacher / T) ‖ softmax(z_student / T))

    The factor T² keeps the size of the gradient the same at every temperature (Hinton et al.,
    arXiv 1503.02531, section 2). A temperature above 1 shows the student how the teacher ranks
    the wrong classes; very small students often do better near 1.

    Computed from the logits in log space, in float64: exact for logits of any size and sign, and
    for a student that nearly equals its teacher, where float32 would cancel.

    Args:
        temperature: T, positive, or a schedule. The paper's own experiments use 2 to 20.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `temperature` is not a positive number.

    Example:
        >>> from kdtflite.losses import SoftTargets
        >>> SoftTargets(temperature=4.0)([[2.0, 0.0]], [[2.0, 0.0]]).numpy()
        array([0.], dtype=float32)
    """

    default_name = "soft_targets"

    def __init__(self, temperature: float | Schedule = 4.0, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        t = read_value(self.temperature, tf.float64)
        divergence = kl(log_probabilities(teacher_logits, t), log_probabilities(student_logits, t))
        return tf.cast(t**2 * divergence, tf.float32)
