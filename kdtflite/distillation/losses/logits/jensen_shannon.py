"""Generalized Jensen-Shannon divergence (Agarwal et al., GKD, arXiv 2306.13649)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_temperature
from kdtflite.distillation.losses.logits.divergence import kl, log_probabilities
from kdtflite.distillation.schedules import Schedule, read_value
from kdtflite.errors import ConfigurationError

__all__ = ["JensenShannon"]


class JensenShannon(LogitsLoss):
    """Divergence of both distributions from their mixture, finite even where one rules out a class.

        p = softmax(z_teacher / T), q = softmax(z_student / T), m = β p + (1 - β) q
        L = T² · (β KL(p ‖ m) + (1 - β) KL(q ‖ m))

    (Agarwal et al., arXiv 2306.13649; T² keeps the gradient's size as in `SoftTargets`.) At
    β = 1/2 it is the symmetric divergence, at most ln 2 · T². A small β has the gradient of
    β · KL(p ‖ q), one near 1 that of (1 - β) · KL(q ‖ p).

    Args:
        temperature: T, positive, or a schedule.
        beta: β, the teacher's share in the mixture, between 0 and 1, both excluded.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `temperature` is not positive, or `beta` is not between 0 and 1.
    """

    default_name = "jensen_shannon"

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        *,
        beta: float = 0.5,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperature = check_temperature(temperature)
        if not 0 < beta < 1:
            raise ConfigurationError(
                f"Expected beta between 0 and 1. Received: beta={beta}. "
                "At the ends the divergence is 0: use SoftTargets or ReverseKL."
            )
        self.beta = float(beta)

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        t = read_value(self.temperature, tf.float64)
        # e^-1e30 is 0, as e^-inf is, but its logarithm has a gradient.
        log_q = tf.maximum(log_probabilities(student_logits, t), -1e30)
        log_p = tf.maximum(log_probabilities(teacher_logits, t), -1e30)
        mixed = tf.stack([math.log(self.beta) + log_p, math.log1p(-self.beta) + log_q])
        log_m = tf.reduce_logsumexp(mixed, axis=0)
        divergence = self.beta * kl(log_p, log_m) + (1 - self.beta) * kl(log_q, log_m)
        return tf.cast(t**2 * divergence, tf.float32)
