"""Mean squared error between logits (Ba & Caruana, arXiv 1312.6184)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss

__all__ = ["LogitsMSE"]


class LogitsMSE(LogitsLoss):
    """Squared distance between the student's and the teacher's logits.

        L = mean over classes of (z_student - z_teacher)²

    Matches magnitudes as well as ranks, so it needs no temperature; it forces a small
    student to spend capacity on the teacher's confidence (Kim et al., arXiv 2105.08919).

    Args:
        center: Subtract each sample's mean logit first, which softmax ignores.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32. The Distiller weights and averages.
    """

    default_name = "logits_mse"

    def __init__(self, *, center: bool = True, name: str | None = None) -> None:
        super().__init__(name=name)
        self.center = bool(center)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        difference = tf.cast(student_logits, tf.float64) - tf.cast(teacher_logits, tf.float64)
        if self.center:
            # The difference of the centered logits is the centered difference.
            difference -= tf.reduce_mean(difference, axis=-1, keepdims=True)
        return tf.cast(tf.reduce_mean(difference**2, axis=-1), tf.float32)
