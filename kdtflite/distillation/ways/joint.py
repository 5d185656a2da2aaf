"""Several objectives trained at once: the base of peers and of multi-task students."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.joint_objective import JointObjective
from kdtflite.distillation.replicas import reduce_loss
from kdtflite.distillation.step import Observed, Step
from kdtflite.distillation.training import BaseDistiller
from kdtflite.models.keras_internals import get_mask

__all__ = ["JointDistiller"]


class JointDistiller(BaseDistiller):
    """Trains on a weighted sum of named objectives, each with its own loss terms and metrics.

        L = Σₖ vₖ · Lₖ + regularization

    Outputs, metrics and terms go by the objectives' names.

    Args:
        objective: The objectives.
        students: The models that are trained.
        name: Name of this model.
    """

    _objective: JointObjective

    def __init__(
        self, objective: JointObjective, students: Sequence[keras.Model], *, name: str
    ) -> None:
        super().__init__(students, name=name)
        self._objective = objective

    @abc.abstractmethod
    def observe(self, x: Any, *, training: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns outputs by name and tapped features by path, from one forward pass."""

    @abc.abstractmethod
    def observe_teachers(self, x: Any, logits: Mapping[str, tf.Tensor]) -> dict[str, Observed]:
        """Returns what each objective's student is to learn from, by name.

        Args:
            x: The batch.
            logits: The students' own logits, by name.
        """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the outputs by name."""
        del mask
        return self.observe(self._prepare_inputs(inputs), training=bool(training))[0]

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on one batch and returns the running means of every loss term and metric."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._note_bad_samples(x)
        with tf.GradientTape() as tape:
            outputs, steps = self._observe_both(x, y, training=True)
            regularization = self._sum_regularization()
            total = self._objective(steps, y, outputs, sample_weight, regularization)
            loss = reduce_loss(total, regularization)
        self.optimizer.minimize(loss, self.trained_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def _observe_both(
        self, x: Any, y: Any, *, training: bool
    ) -> tuple[dict[str, Any], dict[str, Step]]:
        """Returns the students' outputs, and what they and the teachers gave, by name."""
        objectives = self._objective.by_name
        outputs, features = self.observe(self._prepare_inputs(x), training=training)
        logits = {name: each.to_classes(outputs[name]) for name, each in objectives.items()}
        shown = self.observe_teachers(x, logits)
        return outputs, {
            name: Step(
                Observed(logits[name], features, mask=get_mask(outputs[name])),
                shown[name],
                self._objective.pick_labels(y, name),
            )
            for name in objectives
        }

    def _evaluate(self, x: Any, y: Any, sample_weight: Any, *, asks_teacher: bool) -> Any:
        if not asks_teacher:
            return super()._evaluate(x, y, sample_weight, asks_teacher=False)
        outputs, steps = self._observe_both(x, y, training=False)
        self._objective.evaluate(y, outputs, sample_weight, self._sum_regularization(), steps)
        return outputs

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """Returns the means of terms and metrics; metrics go by the objectives' names."""
        pick = self._objective
        weights = {name: pick.pick_weights(sample_weight, name) for name in y_pred}
        given = None if all(weight is None for weight in weights.values()) else weights
        labels = {name: pick.pick_labels(y, name) for name in y_pred}
        return super().compute_metrics(x, labels, y_pred, given)
