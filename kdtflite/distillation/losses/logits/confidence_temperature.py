"""Soft targets with a temperature for each sample (Wen, Lai & Qian, arXiv 1911.07471)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_not_negative, check_temperature
from kdtflite.distillation.losses.logits.divergence import kl, log_probabilities
from kdtflite.distillation.schedules import Schedule, read_value
from kdtflite.distillation.step import Step
from kdtflite.errors import choose

__all__ = ["ConfidenceTemperature"]


class ConfidenceTemperature(LogitsLoss):
    """Soft targets that are sharper where a network is unsure, softer where it is sure.

        w_i = 1 / max_c softmax(z_i)_c
        T_i = max(1, T + β · (mean over the batch of w - w_i))
        L_i = T_i² · KL(softmax(z_teacher / T_i) ‖ softmax(z_student / T_i))

    Dynamic temperature distillation with the weights that its paper calls "confidence weighted
    by student max" (Wen, Lai & Qian, arXiv 1911.07471): a confusing sample gets sharper targets,
    an easy one more of the dark knowledge. The paper takes the confidence from the student and
    normalizes w. Here w is not normalized, so that β does not depend on the batch size, and the
    confidence is the teacher's by default, which is reliable from the first step. No gradient
    flows through T_i.

    Args:
        temperature: T, that of a sample of average confidence; positive, or a schedule.
        beta: β, how far the temperature moves. 0 gives `SoftTargets`.
        confidence: Whose logits z is: "teacher" or "student".
        name: Name of the term in logs.

    Raises:
        ConfigurationError: `temperature` is not positive, `beta` is negative, or `confidence` is
            another word.
    """

    default_name = "confidence_temperature"

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        *,
        beta: float = 1.0,
        confidence: str = "teacher",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        self.beta = check_not_negative("beta", beta)
        self.confidence = choose(confidence, ("teacher", "student"), what="confidence")

    def __call__(self, student_logits: Any, teacher_logits: Any, mask: Any = None) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.
            mask: Which rows of logits count in the mean, bool, shape of the logits without the last
                axis.

        Returns:
            The shape of the logits without the last axis, float32: mostly (batch,).
        """
        sure = teacher_logits if self.confidence == "teacher" else student_logits
        largest = tf.reduce_max(log_probabilities(sure), axis=-1, keepdims=True)
        weights = tf.stop_gradient(tf.exp(-largest))
        counts = tf.ones_like(weights)
        if mask is not None:
            counts = tf.cast(mask, tf.float64)[..., tf.newaxis]
        mean = tf.math.divide_no_nan(tf.reduce_sum(weights * counts), tf.reduce_sum(counts))
        base = tf.convert_to_tensor(read_value(self.temperature, tf.float64), tf.float64)
        t = base + self.beta * (mean - weights)
        # Not below 1 (or a base that is smaller still): the targets would be sharper than the
        # teacher.
        t = tf.maximum(t, tf.minimum(base, 1.0))
        divergence = kl(log_probabilities(teacher_logits, t), log_probabilities(student_logits, t))
        return tf.cast(tf.squeeze(t, axis=-1) ** 2 * divergence, tf.float32)

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(step.student.logits, step.teacher.logits, step.counted)
