"""The teacher's decision as the label (Touvron et al., DeiT, arXiv 2012.12877)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_fraction
from kdtflite.distillation.losses.logits.divergence import cross_entropy, log_probabilities
from kdtflite.distillation.losses.logits.target_classes import one_hot_decisions
from kdtflite.distillation.schedules import Schedule, read_value

__all__ = ["HardTargets"]


class HardTargets(LogitsLoss):
    """Cross-entropy with the class that the teacher finds most likely.

        L = -Σ_c y_c · ln softmax(z_student)_c
        y = (1 - ε) · onehot(argmax z_teacher) + ε / classes

    Hard-label distillation (Touvron et al., arXiv 2012.12877). It needs no
    temperature and, unlike the true label, follows the sample's augmentation: a crop that
    shows something else gets another label. ε smooths the label, as in the paper.

    Args:
        label_smoothing: ε, from 0 to 1, or a schedule. The paper smooths by 0.1.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32. Among equal logits the first class counts.

    Raises:
        ConfigurationError: `label_smoothing` is outside 0 to 1.
    """

    default_name = "hard_targets"

    def __init__(self, *, label_smoothing: float | Schedule = 0.0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.label_smoothing = check_fraction("label_smoothing", label_smoothing)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        smoothing = read_value(self.label_smoothing, tf.float64)
        student = log_probabilities(student_logits)
        labels = one_hot_decisions(teacher_logits)
        labels += smoothing * (1.0 / tf.cast(tf.shape(labels)[-1], tf.float64) - labels)
        return tf.cast(cross_entropy(labels, student), tf.float32)
