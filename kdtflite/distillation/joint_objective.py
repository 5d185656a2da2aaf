"""A weighted sum of named objectives, each with its own loss terms and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.objective import Objective
from kdtflite.distillation.schedules import read_value
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError, choose

__all__ = ["JointObjective"]

_NO_REGULARIZATION = 0.0  # it belongs to the students, not to a single objective


class JointObjective:
    """L = Σₖ vₖ · Lₖ + regularization.

    Outputs, labels and sample weights go by the objectives' names. A plain object, as Objective.

    Args:
        objectives: The objectives, in the order of the outputs; each has a name.
        labels_by_name: Whether every objective has labels of its own; else they share one y.
    """

    def __init__(self, objectives: Iterable[Objective], *, labels_by_name: bool) -> None:
        self.by_name = {objective.name: objective for objective in objectives}
        self.labels_by_name = labels_by_name
        self.loss = keras.metrics.Mean(name="loss")
        self.regularization = keras.metrics.Mean(name="regularization_loss")

    def __iter__(self) -> Iterator[Objective]:
        return iter(self.by_name.values())

    @property
    def uses_randomness(self) -> bool:
        """Whether a loss draws random numbers."""
        return any(objective.uses_randomness for objective in self)

    @property
    def variables(self) -> list[tf.Variable]:
        """What the losses train or remember."""
        return [variable for objective in self for variable in objective.variables]

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """What the losses train beside the students."""
        return [variable for objective in self for variable in objective.trainable_variables]

    @property
    def term_metrics(self) -> list[keras.metrics.Metric]:
        """The means of the terms, which only training reports."""
        return [mean for each in self for mean in each.term_metrics[:-1]] + [self.regularization]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of the loss, and of every objective and its terms."""
        means = [mean for objective in self for mean in objective.metrics[:-1]]
        return [self.loss, *means, self.regularization]

    def compile(self, loss: Any) -> None:
        """Sets the losses on the labels: one for every objective, or a dict by name.

        Raises:
            ConfigurationError: A name that does not exist, or as `Objective.compile`.
        """
        if isinstance(loss, Mapping):
            for name in loss:
                choose(name, self.by_name, what="objective (a key of loss=)")
        for name, objective in self.by_name.items():
            objective.compile(loss.get(name) if isinstance(loss, Mapping) else loss)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Moves every schedule to `epoch`, from 0, of `epochs`."""
        for objective in self:
            objective.begin_epoch(epoch, epochs)

    def check_labels(self, labels: Any) -> None:
        """Raises DataError unless the losses on the labels take `labels`."""
        for name, objective in self.by_name.items():
            objective.check_labels(self.pick_labels(labels, name))

    def pick_labels(self, y: Any, name: str) -> Any:
        """Returns the labels of one objective, or None.

        Raises:
            ConfigurationError: One tensor although every objective has labels of its own.
        """
        if not self.labels_by_name or y is None or isinstance(y, Mapping | list | tuple):
            return self._pick(y, name)
        raise ConfigurationError(
            f"Expected y as a dict with the keys {', '.join(self.by_name)}. Received: one tensor "
            f"of shape {getattr(y, 'shape', 'unknown')}."
        )

    def pick_weights(self, sample_weight: Any, name: str) -> Any:
        """Returns the sample weights of one objective, or None."""
        return self._pick(sample_weight, name)

    def __call__(
        self,
        steps: Mapping[str, Step],
        y: Any,
        outputs: Mapping[str, Any],
        sample_weight: Any,
        regularization: Any,
    ) -> tf.Tensor:
        """Returns the weighted sum, shape (batch,), and tracks every term.

        Args:
            steps: What the students and the teachers gave, by name.
            y: The labels, as `fit` was given them.
            outputs: The students' outputs by name.
            sample_weight: As `fit` was given it.
            regularization: A scalar, tracked here and added by the caller.
        """
        total = tf.zeros([tf.shape(next(iter(steps.values())).student.logits)[0]])
        for name, objective in self.by_name.items():
            total += read_value(objective.weight) * objective(
                steps[name],
                objective.compare_labels(self.pick_labels(y, name), outputs[name]),
                self.pick_weights(sample_weight, name),
                _NO_REGULARIZATION,
            )
        self._track(total, regularization)
        return total

    def evaluate(
        self,
        y: Any,
        outputs: Mapping[str, Any],
        sample_weight: Any,
        regularization: Any,
        steps: Mapping[str, Step] | None = None,
    ) -> tf.Tensor:
        """Returns the sum of what the objectives' evaluation reports, shape (batch,)."""
        total = tf.zeros([tf.shape(next(iter(outputs.values())))[0]])
        for name, objective in self.by_name.items():
            values = objective.evaluate(
                self.pick_labels(y, name),
                outputs[name],
                self.pick_weights(sample_weight, name),
                _NO_REGULARIZATION,
                None if steps is None else steps[name],
            )
            total += read_value(objective.weight) * values
        self._track(total, regularization)
        return total

    @property
    def learns_from_teacher_alone(self) -> bool:
        """Whether some objective has distillation losses and no loss on the labels."""
        return any(objective.learns_from_teacher_alone for objective in self)

    def _pick(self, given: Any, name: str) -> Any:
        if not self.labels_by_name:
            return given
        if isinstance(given, Mapping):
            return given.get(name)
        if isinstance(given, list | tuple):
            return given[list(self.by_name).index(name)]
        return given

    def _track(self, total: tf.Tensor, regularization: Any) -> None:
        self.loss.update_state(total + regularization)
        if not isinstance(regularization, float):  # 0: the students have none
            self.regularization.update_state(regularization)
