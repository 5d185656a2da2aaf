"""What a student is trained for: hard labels and distillation losses, weighed and tracked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses import DistillationLoss, HardLabels
from kdtflite.distillation.losses.checks import ends
from kdtflite.distillation.outputs import Task
from kdtflite.distillation.replicas import over_replicas
from kdtflite.distillation.schedules import Schedule, current
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError

__all__ = ["Objective", "per_sample", "share_of_mean"]

Shape = tuple[int | None, ...]


class Objective:
    """The weighted sum of the hard-label loss and the distillation losses, a value a sample.

    A plain object: Keras would count the metrics and adapters in it among the student's weights.

    Args:
        losses: Distillation losses.
        hard_label_weight: w, from 0 to 1, or a schedule of it; None takes 0.1 where a loss shares
            what the hard labels leave (those on logits), else 1.
        loss_weights: wᵢ, one a loss, numbers or schedules; None takes each loss's own default, and
            1 - w in equal parts for those without.
        task: What is decided.
        prefix: Put before the names of the terms, where a model has several objectives.

    Raises:
        ConfigurationError: Weights or losses that make no sense.
    """

    def __init__(
        self,
        losses: Any,
        hard_label_weight: float | Schedule | None,
        loss_weights: Sequence[float | Schedule] | None,
        task: Task,
        *,
        prefix: str = "",
    ) -> None:
        # A tuple, not a list: Keras wraps lists to track what is in them.
        self.losses = _checked(losses, task)
        self.hard_label_weight, self.loss_weights = _weights(
            self.losses, hard_label_weight, loss_weights
        )
        self.hard_labels: HardLabels | None = None
        self.loss = keras.metrics.Mean(name=f"{prefix}loss")
        names = (HardLabels.name, *(loss.name for loss in self.losses), "regularization")
        self._means = {name: keras.metrics.Mean(name=f"{prefix}{name}_loss") for name in names}

    @property
    def student_layers(self) -> list[str]:
        """Paths of the student's layers that the losses read."""
        return [path for loss in self.losses for path in loss.student_layers]

    @property
    def teacher_layers(self) -> list[str]:
        """Paths of the teacher's layers that the losses read."""
        return [path for loss in self.losses for path in loss.teacher_layers]

    @property
    def needs_input_gradient(self) -> bool:
        """Whether a loss asks for gradients by the inputs."""
        return any(loss.needs_input_gradient for loss in self.losses)

    @property
    def draws(self) -> bool:
        """Whether a loss draws random numbers."""
        return any(loss.draws for loss in self.losses)

    @property
    def variables(self) -> list[tf.Variable]:
        """What the losses train or remember."""
        return [variable for loss in self.losses for variable in loss.variables]

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """What the losses train beside the student."""
        return [variable for loss in self.losses for variable in loss.trainable_variables]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of the terms that there are."""
        missing = HardLabels.name if self.hard_labels is None else None
        return [mean for name, mean in self._means.items() if name != missing]

    def build(
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        """Lets every loss make what it trains, from the shapes of the tapped layers."""
        for loss in self.losses:
            loss.build(
                {path: student_shapes[path] for path in loss.student_layers},
                {path: teacher_shapes[path] for path in loss.teacher_layers},
            )

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Moves every schedule on to `epoch`, from 0, of `epochs`."""
        scheduled = [self.hard_label_weight, *self.loss_weights]
        for loss in self.losses:
            scheduled.extend(loss.schedules)
        for value in scheduled:
            if isinstance(value, Schedule):
                value.begin(epoch, epochs)

    def __call__(
        self, step: Step, hard: tf.Tensor | None, sample_weight: Any, regularization: tf.Tensor
    ) -> tf.Tensor:
        """Returns the weighted sum of all terms, shape (batch,), and tracks every term.

        Args:
            step: What was seen.
            hard: The hard-label loss, shape (batch,) or (batch, positions); None without.
            sample_weight: Shape (batch,), (batch, positions) or None.
            regularization: A scalar, tracked here and added by the caller.
        """
        terms: list[tuple[str, Any, tf.Tensor]] = []
        if hard is not None:
            terms.append((HardLabels.name, self.hard_label_weight, hard))
        for loss, weight in zip(self.losses, self.loss_weights, strict=True):
            terms.append((loss.name, weight, loss.of_step(step)))
        total = tf.zeros([tf.shape(step.student.logits)[0]])
        for name, weight, values in terms:
            values = per_sample(values, step.student.mask, sample_weight)
            self._means[name].update_state(values)
            total += current(weight) * values
        self.track(total, regularization)
        return total

    def track(self, total: tf.Tensor, regularization: tf.Tensor) -> None:
        """Tracks the whole loss, from its values a sample, and the regularization in it."""
        self._means["regularization"].update_state(regularization)
        self.loss.update_state(total + regularization)

    def evaluate(
        self, hard: tf.Tensor | None, mask: Any, sample_weight: Any, regularization: tf.Tensor
    ) -> None:
        """Tracks the hard-label loss alone, as evaluation states it."""
        if hard is None:
            self.track(tf.zeros([1]), regularization)
        else:
            self.track(per_sample(hard, mask, sample_weight), regularization)


def per_sample(values: tf.Tensor, mask: Any, sample_weight: Any) -> tf.Tensor:
    """Returns one value a sample, shape (batch,), float32, weighted.

    Values of positions become their mean over the positions that count, each with its own weight
    where `sample_weight` has one a position; the one value of a sample has their mean as weight.

    Args:
        values: Shape (batch,) or (batch, positions, ...).
        mask: Which positions count, shape (batch, positions), or None for all.
        sample_weight: Shape (batch,), (batch, 1), (batch, positions), or None.
    """
    values = tf.cast(values, tf.float32)
    weight = None if sample_weight is None else tf.cast(sample_weight, tf.float32)
    if values.shape.rank == 1:
        if weight is not None and weight.shape.rank == 2 and weight.shape[1] != 1:
            # A sample that has one value weighs as its positions do in the mean.
            weight = per_sample(weight, mask, None)
        return values if weight is None else values * tf.reshape(weight, tf.shape(values))
    while values.shape.rank > 2:
        values = tf.reduce_mean(values, axis=-1)
    counted = tf.ones_like(values) if mask is None else tf.cast(mask, tf.float32)
    if weight is not None:
        weight = weight[:, tf.newaxis] if weight.shape.rank == 1 else weight
        values *= weight
    # Not values * counted: a padded position may hold NaN.
    values = tf.where(counted > 0, values, tf.zeros_like(values))
    return tf.math.divide_no_nan(tf.reduce_sum(values, axis=1), tf.reduce_sum(counted, axis=1))


def share_of_mean(values: tf.Tensor) -> tf.Tensor:
    """Returns this replica's share of the mean of `values`, shape (batch,), over all replicas.

    The shares add up over the replicas, as their gradients do. Keras would instead take the mean
    of the replicas' means, which is another number when they are not equally full.
    """
    everywhere = over_replicas(tf.cast(tf.shape(values)[0], tf.float32))
    return tf.math.divide_no_nan(tf.reduce_sum(values), everywhere)


class _Rest(Schedule):
    """An equal part of what scheduled hard labels leave."""

    def __init__(self, hard: Schedule, parts: int) -> None:
        super().__init__()
        self.hard = hard
        self.parts = parts

    def at(self, epoch: int, epochs: int) -> float:
        return (1.0 - self.hard.at(epoch, epochs)) / self.parts


def _checked(given: Any, task: Task) -> tuple[DistillationLoss, ...]:
    sequence = isinstance(given, list | tuple)
    if not sequence or not all(isinstance(loss, DistillationLoss) for loss in given):
        raise ConfigurationError(
            "Expected losses to be a list of kdtflite.losses, for example "
            f"[losses.SoftTargets(temperature=1.0)]. Received: {given!r}."
        )
    names = [loss.name for loss in given]
    taken = {HardLabels.name, "regularization"}
    if len(set(names)) < len(names) or taken & set(names):
        raise ConfigurationError(
            f"Expected every loss to have a name of its own, other than {sorted(taken)}. "
            f"Received: {', '.join(names)}. Pass name= to the losses."
        )
    for loss in given:
        if task not in loss.tasks:
            raise ConfigurationError(
                f"The loss {loss.name!r} is for {' and '.join(loss.tasks)} students. "
                f"Received: a {task} student. Use another loss, or pass task= if the student is "
                "of another kind."
            )
    return tuple(given)


def _weights(
    losses: tuple[DistillationLoss, ...],
    hard: float | Schedule | None,
    given: Sequence[float | Schedule] | None,
) -> tuple[float | Schedule, tuple[float | Schedule, ...]]:
    sharing = [loss for loss in losses if loss.default_weight is None]
    if hard is None:
        hard = 0.1 if sharing else 1.0
    if not all(0 <= value <= 1 for value in ends(hard)):
        raise ConfigurationError(
            f"Expected hard_label_weight from 0 to 1. Received: {_shown(hard)}. "
            "Use loss_weights= to weigh the other terms freely."
        )
    if given is None:
        parts = max(len(sharing), 1)
        rest = _Rest(hard, parts) if isinstance(hard, Schedule) else (1.0 - hard) / parts
        given = [rest if loss.default_weight is None else loss.default_weight for loss in losses]
    if len(given) != len(losses) or not all(
        0 <= value < math.inf for weight in given for value in ends(weight)
    ):
        raise ConfigurationError(
            f"Expected {len(losses)} loss_weights, finite and none negative. "
            f"Received: {[_shown(weight) for weight in given]}."
        )
    return hard, tuple(given)


def _shown(weight: float | Schedule) -> Any:
    return f"{type(weight).__name__}" if isinstance(weight, Schedule) else weight
