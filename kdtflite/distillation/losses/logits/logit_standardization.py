"""Logit standardization for any loss on logits (Sun et al., arXiv 2403.01427)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss, Shape
from kdtflite.distillation.losses.logits.standardize import unit_deviations
from kdtflite.distillation.losses.temperature import check_temperature
from kdtflite.distillation.schedules import Schedule, current
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError

__all__ = ["LogitStandardization"]


class LogitStandardization(LogitsLoss):
    """Another loss, of logits whose mean and spread are taken out first.

        Z(z) = (z - mean(z)) / (τ · std(z)), over the classes of each sample
        L = τ² · loss(Z(z_student), Z(z_teacher))

    A shared temperature asks the student for logits as large as the teacher's, though their
    order and relations are enough; the standard deviation as each one's own temperature does not
    (Sun et al., arXiv 2403.01427, algorithm 1, with the population's standard deviation).

    Around `SoftTargets(1.0)` this is the paper's loss, which it weighs by 9 beside a hard-label
    loss of weight 0.1. A loss with a temperature T of its own softens on top: `SoftTargets(T)`
    with τ is `SoftTargets(1.0)` with τ · T, so leave one of the two at 1.

    Of two classes the z-scores are ±1 and say no more than which is larger: nothing to learn from,
    so yes-or-no labels are refused.

    Logits that are all equal become zeros, without gradient. A class that is ruled out (logit
    -inf) stays so, and is left out of mean and deviation.

    Args:
        loss: The loss to wrap, over classes.
        base_temperature: τ, positive, or a schedule of it.
        name: Name of the term in logs; by default "standardized_" and the wrapped loss's.

    Raises:
        ConfigurationError: `loss` is not on the logits of classes, or `base_temperature` not
            positive.

    Example:
        >>> paper = LogitStandardization(SoftTargets(1.0))
        >>> paper([[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]).numpy()
        array([0.], dtype=float32)
    """

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
        super().__init__(name=f"standardized_{loss.name}" if name is None else name)
        self.loss = loss
        self.base_temperature = check_temperature(base_temperature)

    def __call__(self, student_logits: Any, teacher_logits: Any, *rest: Any) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.
            *rest: What else the wrapped loss takes, as labels.

        Returns:
            The shape of the logits without the classes, float32: (batch,) for most.
        """
        values = self.loss(self._standard(student_logits), self._standard(teacher_logits), *rest)
        return self._scaled(values)

    def of_step(self, step: Step) -> tf.Tensor:  # noqa: D102
        student, teacher = (
            dataclasses.replace(seen, logits=self._standard(seen.logits))
            for seen in (step.student, step.teacher)
        )
        return self._scaled(
            self.loss.of_step(dataclasses.replace(step, student=student, teacher=teacher))
        )

    def build(  # noqa: D102
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        self.loss.build(student_shapes, teacher_shapes)

    @property
    def variables(self) -> list[tf.Variable]:  # noqa: D102
        return self.loss.variables

    @property
    def trainable_variables(self) -> list[tf.Variable]:  # noqa: D102
        return self.loss.trainable_variables

    @property
    def schedules(self) -> list[Schedule]:  # noqa: D102
        return [*super().schedules, *self.loss.schedules]

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {
            "loss": self.loss,
            "base_temperature": self.base_temperature,
            **super().get_config(),
        }

    def _standard(self, logits: Any) -> tf.Tensor:
        logits = tf.cast(logits, tf.float64)
        finite = tf.math.is_finite(logits)
        units, _ = unit_deviations(tf.where(finite, logits, tf.zeros_like(logits)), -1, finite)
        classes = tf.reduce_sum(tf.cast(finite, tf.float64), axis=-1, keepdims=True)
        standard = units * tf.sqrt(classes) / current(self.base_temperature, tf.float64)
        return tf.where(finite, standard, logits)

    def _scaled(self, values: tf.Tensor) -> tf.Tensor:
        return values * current(self.base_temperature) ** 2
