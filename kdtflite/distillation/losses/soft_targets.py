"""Soft targets (Hinton, Vinyals & Dean, arXiv 1503.02531)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.errors import ConfigurationError

__all__ = ["SoftTargets"]


class SoftTargets(DistillationLoss):
    """Divergence of the student's softened distribution from the teacher's.

        L = T² · KL(softmax(z_teacher / T) ‖ softmax(z_student / T))

    The factor T² keeps the gradient's size the same whatever the temperature (Hinton et al.,
    arXiv 1503.02531, section 2). A temperature above 1 shows the student how the teacher ranks
    the wrong classes; very small students often do better near 1.

    Computed in log space in float64 from the logits given: exact for logits of any size and
    sign, and for a student that has nearly become its teacher, where float32 would cancel.

    Args:
        temperature: T, positive. The paper's own experiments use 2 to 20.
        name: Name of the term in logs.

    Returns:
        One value a sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `temperature` is not a positive number.

    Example:
        >>> SoftTargets(temperature=4.0)([[2.0, 0.0]], [[2.0, 0.0]]).numpy()
        array([0.], dtype=float32)
    """

    def __init__(self, temperature: float = 4.0, *, name: str = "soft_targets") -> None:
        super().__init__(name=name)
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigurationError(
                f"Expected a positive, finite temperature. Received: temperature={temperature}."
            )
        self.temperature = float(temperature)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        student = tf.nn.log_softmax(tf.cast(student_logits, tf.float64) / self.temperature)
        teacher = tf.nn.log_softmax(tf.cast(teacher_logits, tf.float64) / self.temperature)
        p_student, p_teacher = tf.exp(student), tf.exp(teacher)
        d = student - teacher
        # Both distributions sum to 1, so KL = Σ p_t (e^d - 1 - d). None of these terms is negative:
        # nothing cancels when the student has nearly become its teacher, as in Σ p_t (-d).
        near = tf.abs(d) < 0.5
        d_near = tf.where(near, d, tf.zeros_like(d))
        terms = tf.where(
            near,
            p_teacher * (tf.math.expm1(d_near) - d_near),
            # A class that the teacher rules out (logit -inf) adds only what the student gives it,
            # even where the student rules it out too.
            p_student - p_teacher - tf.math.multiply_no_nan(d, p_teacher),
        )
        divergence = tf.reduce_sum(terms, axis=-1)
        return tf.cast(self.temperature**2 * divergence, tf.float32)

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {"temperature": self.temperature, **super().get_config()}
