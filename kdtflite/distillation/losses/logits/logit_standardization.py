"""Logit standardization for any loss on logits (Sun et al., arXiv 2403.01427)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss, WrappedLoss
from kdtflite.distillation.losses.checks import check_temperature
from kdtflite.distillation.losses.logits.standardize import unit_deviations
from kdtflite.distillation.schedules import Schedule, read_value
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError

__all__ = ["LogitStandardization"]


class LogitStandardization(WrappedLoss, LogitsLoss):
    """Another loss, on logits whose mean and spread are removed first.

        Z(z) = (z - mean(z)) / (τ · std(z)), over the classes of each sample
        L = τ² · loss(Z(z_student), Z(z_teacher))

    A shared temperature asks the student for logits as large as the teacher's, although their
    order and relations would be enough. Dividing by each sample's own standard deviation does not
    (Sun et al., arXiv 2403.01427, algorithm 1, with the population's standard deviation).

    Around `SoftTargets(1.0)` this is the paper's loss, which it weighs by 9 beside a hard-label
    loss of weight 0.1. A loss with a temperature T of its own softens on top: `SoftTargets(T)`
    with τ is `SoftTargets(1.0)` with τ · T, so leave one of the two at 1.

    With two classes the z-scores are ±1 and only say which logit is larger, so yes-or-no labels
    are refused.

    Logits that are all equal become zeros, without gradient. A class that is ruled out (logit
    -inf) stays so and does not count in mean and deviation.

    Args:
        loss: The loss to wrap, over classes.
        base_temperature: τ, positive, or a schedule.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: `loss` is not on the logits of classes, or `base_temperature` is not
            positive.

    Example:
        >>> from kdtflite.losses import LogitStandardization, SoftTargets
        >>> loss = LogitStandardization(SoftTargets(1.0))
        >>> loss([[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]).numpy()
        array([0.], dtype=float32)
    """

    default_name = "logit_standardization"
    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)

    def __init__(
        self,
        loss: LogitsLoss,
        *,
        base_temperature: float | Schedule = 2.0,
        name: str | None = None,
    ) -> None:
        if not isinstance(loss, LogitsLoss) or "multiclass" not in loss.tasks:
            raise ConfigurationError(
                "Expected a loss on the logits of classes, such as SoftTargets(1.0). "
                f"Received: loss={loss!r}."
            )
        super().__init__(name=name)
        self.loss: LogitsLoss = loss
        self.base_temperature = check_temperature(base_temperature)

    def __call__(self, student_logits: Any, teacher_logits: Any, *rest: Any) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.
            *rest: Further arguments of the wrapped loss, such as labels.

        Returns:
            The shape of the logits without the last axis, float32: mostly (batch,).
        """
        student, teacher = self._standardize(student_logits), self._standardize(teacher_logits)
        return self._scale(self.loss(student, teacher, *rest))

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        student, teacher = (
            dataclasses.replace(seen, logits=self._standardize(seen.logits))
            for seen in (step.student, step.teacher)
        )
        return self._scale(
            self.loss.compute(dataclasses.replace(step, student=student, teacher=teacher))
        )

    def _standardize(self, logits: Any) -> tf.Tensor:
        logits = tf.cast(logits, tf.float64)
        finite = tf.math.is_finite(logits)
        units, _ = unit_deviations(tf.where(finite, logits, tf.zeros_like(logits)), -1, finite)
        classes = tf.reduce_sum(tf.cast(finite, tf.float64), axis=-1, keepdims=True)
        standard = units * tf.sqrt(classes) / read_value(self.base_temperature, tf.float64)
        return tf.where(finite, standard, logits)

    def _scale(self, values: tf.Tensor) -> tf.Tensor:
        return values * read_value(self.base_temperature) ** 2
