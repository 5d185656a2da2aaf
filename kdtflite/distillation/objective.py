"""What a student is trained for: hard labels and distillation losses, weighted and tracked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.checks.compatibility import check_loss
from kdtflite.distillation.checks.first_batch import check_labels
from kdtflite.distillation.checks.task import check_guess_by_labels, check_guess_by_loss
from kdtflite.distillation.checks.teacher_score import TeacherScore
from kdtflite.distillation.losses import DistillationLoss, HardLabels
from kdtflite.distillation.losses.checks import get_ends
from kdtflite.distillation.outputs import Outputs, Task, as_classes, to_logits
from kdtflite.distillation.reduction import reduce_to_samples, spread_mask
from kdtflite.distillation.schedules import Schedule, read_value
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.models.keras3.objects import to_tf_keras_loss
from kdtflite.models.keras_internals import get_mask

__all__ = ["Objective", "resolve_weights"]

Shape = tuple[int | None, ...]


class Objective:
    """The weighted sum of the hard-label loss and the distillation losses, one value per sample.

    A plain object: Keras would count the metrics and adapters in it among the student's weights.

    Args:
        losses: Distillation losses.
        hard_label_weight: w, from 0 to 1, or a schedule; None means 0.1 where a loss shares what
            the hard labels leave (those on logits do), else 1.
        loss_weights: One wᵢ per loss, numbers or schedules; None means each loss's own default,
            and equal parts of 1 - w for the losses without one.
        outputs: What the student's output is.
        task: What it decides.
        output_shape: Its shape, (None, ..., classes).
        guessed: Whether the task was read off the last layer: it is then held against the loss
            and the labels.
        how_to_say: The argument by which to state another task, for messages.
        output_step: The distance of two of its codes, as `find_output_step` returns it.
        scores_teacher: Whether steps hold the teacher's own logits for the samples of the labels.
        name: Goes before the names of the terms, where a model has several objectives.
        weight: Weight of this objective, where a model has several.

    Raises:
        ConfigurationError: Invalid weights or losses.
    """

    def __init__(
        self,
        losses: Any,
        hard_label_weight: float | Schedule | None,
        loss_weights: Sequence[float | Schedule] | None,
        *,
        outputs: Outputs,
        task: Task,
        output_shape: Shape,
        guessed: bool = False,
        how_to_say: str = "task={!r}",
        scores_teacher: bool = True,
        output_step: float = 0.0,
        name: str = "",
        weight: float | Schedule = 1.0,
    ) -> None:
        # A tuple, not a list: Keras wraps lists to track what is in them.
        self.hard_label_weight, self.loss_weights = resolve_weights(
            losses, hard_label_weight, loss_weights, task
        )
        self.losses: tuple[DistillationLoss, ...] = tuple(losses)
        self.outputs = outputs
        self.task = task
        self.output_shape = output_shape
        self.guessed = guessed
        self.how_to_say = how_to_say
        self.output_step = output_step
        self.name = name
        self.weight = weight
        self.hard_labels: HardLabels | None = None
        self.teacher_score = TeacherScore(task) if self.losses and scores_teacher else None
        prefix = f"{name}_" if name else ""
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
        """Whether a loss needs gradients with respect to the inputs."""
        return any(loss.needs_input_gradient for loss in self.losses)

    @property
    def uses_randomness(self) -> bool:
        """Whether a loss draws random numbers."""
        return any(loss.uses_randomness for loss in self.losses)

    @property
    def variables(self) -> list[tf.Variable]:
        """What the losses train or remember."""
        return [variable for loss in self.losses for variable in loss.variables]

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """What the losses train beside the student."""
        return [variable for loss in self.losses for variable in loss.trainable_variables]

    @property
    def term_metrics(self) -> list[keras.metrics.Metric]:
        """The means of the terms, which only training reports."""
        missing = HardLabels.name if self.hard_labels is None else None
        return [mean for name, mean in self._means.items() if name != missing]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The mean of the loss, then those of its terms."""
        return [self.loss, *self.term_metrics]

    def build(
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        """Lets every loss create what it trains, from the shapes of the tapped layers."""
        for loss in self.losses:
            loss.build(
                {path: student_shapes[path] for path in loss.student_layers},
                {path: teacher_shapes[path] for path in loss.teacher_layers},
            )

    def compile(self, loss: Any) -> None:
        """Sets the loss on the labels, as `compile` of a model is given it.

        Raises:
            ConfigurationError: No loss although the labels have a weight, or a loss that does not
                fit the student's output.
        """
        loss = to_tf_keras_loss(loss)
        if loss is None and self.hard_label_weight != 0:
            raise ConfigurationError(
                f"hard_label_weight={_describe_weight(self.hard_label_weight)}"
                f"{f' of {self.name!r}' if self.name else ''} needs a loss for the hard labels. "
                "Pass loss= to compile(), or hard_label_weight=0 to the constructor."
            )
        hard_labels = None if loss is None else HardLabels(loss)
        if hard_labels is not None:
            check_loss(hard_labels, self.outputs, self.task)
            if self.guessed:
                check_guess_by_loss(
                    hard_labels, self.outputs, self.task, how_to_say=self.how_to_say
                )
        self.hard_labels = hard_labels

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Moves every schedule to `epoch`, from 0, of `epochs`."""
        scheduled = [self.weight, self.hard_label_weight, *self.loss_weights]
        for loss in self.losses:
            scheduled.extend(loss.schedules)
        for value in scheduled:
            if isinstance(value, Schedule):
                value.begin(epoch, epochs)

    def check_labels(self, labels: Any) -> None:
        """Raises DataError unless the loss on the labels, and a guessed task, take `labels`."""
        if self.hard_labels is not None:
            self._require(labels, self.hard_labels)
            check_labels(self.hard_labels, labels, self.output_shape)
        if self.guessed:
            check_guess_by_labels(
                labels,
                self.output_shape,
                self.task,
                loss=self.hard_labels,
                name=self.name,
                how_to_say=self.how_to_say,
            )

    def compare_labels(self, labels: Any, outputs: tf.Tensor) -> tf.Tensor | None:
        """Returns the hard-label loss of each sample or position; None without such a loss.

        Raises:
            DataError: There are no labels.
        """
        if self.hard_labels is None:
            return None
        self._require(labels, self.hard_labels)
        return self.hard_labels(labels, outputs)

    def to_classes(self, outputs: Any) -> tf.Tensor:
        """Returns logits with the classes of one decision on the last axis."""
        logits = to_logits(outputs, self.outputs, step=self.output_step)
        return as_classes(logits, self.task)

    def __call__(
        self, step: Step, hard: tf.Tensor | None, sample_weight: Any, regularization: Any
    ) -> tf.Tensor:
        """Returns the weighted sum of all terms, shape (batch,), and tracks every term.

        Args:
            step: What the student and the teacher gave.
            hard: What `compare_labels` returned: the hard-label loss, or None without one.
            sample_weight: Shape (batch,), (batch, ...) of positions, or None.
            regularization: A scalar, tracked here and added by the caller.
        """
        total = tf.zeros([tf.shape(step.student.logits)[0]])
        if hard is not None:
            values = self._reduce_hard(hard, sample_weight)
            self._means[HardLabels.name].update_state(values)
            total += read_value(self.hard_label_weight) * values
        step = self._count_decisions(step, hard)
        if self.teacher_score is not None:
            self.teacher_score.update(step)
        for loss, weight, values in self._compare_models(step, sample_weight):
            self._means[loss.name].update_state(values)
            total += read_value(weight) * values
        self._track(total, regularization)
        return total

    def evaluate(
        self,
        y: Any,
        outputs: Any,
        sample_weight: Any,
        regularization: Any,
        step: Step | None = None,
    ) -> tf.Tensor:
        """Returns the loss that evaluation reports, shape (batch,): that of the labels alone.

        Without a loss on the labels it is the weighted sum of the distillation losses.

        Args:
            y: The labels.
            outputs: The student's output.
            sample_weight: Shape (batch,), (batch, ...) of positions, or None.
            regularization: A scalar, tracked here.
            step: What student and teacher gave, both with training=False; needed where there is
                no loss on the labels.
        """
        hard = self.compare_labels(y, outputs)
        values = tf.zeros([tf.shape(outputs)[0]])
        if hard is not None:
            values = self._reduce_hard(hard, sample_weight)
        elif step is not None:
            remembered = [tf.identity(variable) for variable in self._memory]
            step = self._count_decisions(step, None)
            for _, weight, term in self._compare_models(step, sample_weight):
                values += read_value(weight) * term
            for variable, value in zip(self._memory, remembered, strict=True):
                variable.assign(value)
        self._track(values, regularization)
        return values

    @property
    def learns_from_teacher_alone(self) -> bool:
        """Whether there are distillation losses and no loss on the labels."""
        return self.hard_labels is None and bool(self.losses)

    @property
    def _memory(self) -> list[tf.Variable]:
        """What the losses remember from one batch to the next."""
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in self.variables if id(variable) not in trained]

    def _reduce_hard(self, hard: tf.Tensor, sample_weight: Any) -> tf.Tensor:
        if self.hard_labels is not None:
            self.hard_labels.check_weights(sample_weight)
        return reduce_to_samples(hard, None, sample_weight)  # without what does not count already

    def _count_decisions(self, step: Step, hard: tf.Tensor | None) -> Step:
        """Returns the step with what counts of the student's mask and of the labels."""
        mask = get_mask(hard)  # the student's own and what the labels leave out
        mask = step.student.mask if mask is None else mask
        return replace(step, counted=spread_mask(mask, step.student.logits))

    def _compare_models(
        self, step: Step, sample_weight: Any
    ) -> Iterator[tuple[DistillationLoss, float | Schedule, tf.Tensor]]:
        """Yields each distillation loss, its weight and its values, shape (batch,)."""
        for loss, weight in zip(self.losses, self.loss_weights, strict=True):
            yield loss, weight, reduce_to_samples(loss.compute(step), step.counted, sample_weight)

    def _track(self, total: tf.Tensor, regularization: Any) -> None:
        if not isinstance(regularization, float):  # 0: the student has none
            self._means["regularization"].update_state(regularization)
        self.loss.update_state(total + regularization)

    def _require(self, labels: Any, loss: HardLabels) -> None:
        if labels is not None:
            return
        raise DataError(
            f"The loss {loss.function or 'of compile()'} needs labels. Expected labels"
            f"{f' for {self.name!r}' if self.name else ''}, one per sample. Received: none. Pass "
            "y, or batches (x, y); to learn from the teacher alone, pass hard_label_weight=0 to "
            "the constructor and no loss to compile()."
        )


def resolve_weights(
    losses: Any,
    hard: float | Schedule | None,
    given: Sequence[float | Schedule] | None,
    task: Task,
) -> tuple[float | Schedule, tuple[float | Schedule, ...]]:
    """Returns the weight of the hard labels and one per loss, defaults filled in.

    Args:
        losses: As `Objective` takes them.
        hard: As `Objective` takes hard_label_weight.
        given: As `Objective` takes loss_weights.
        task: What the student decides.

    Raises:
        ConfigurationError: Invalid weights or losses.
    """
    _check_losses(losses, task)
    sharing = [loss for loss in losses if loss.default_weight is None]
    if hard is None:
        hard = 0.1 if sharing else 1.0
    if not all(0 <= value <= 1 for value in get_ends(hard)):
        raise ConfigurationError(
            f"Expected hard_label_weight from 0 to 1. Received: {_describe_weight(hard)}. "
            "Use loss_weights= to weigh the other terms freely."
        )
    if given is None:
        parts = max(len(sharing), 1)
        rest = _Remainder(hard, parts) if isinstance(hard, Schedule) else (1.0 - hard) / parts
        given = [rest if loss.default_weight is None else loss.default_weight for loss in losses]
    if len(given) != len(losses) or not all(
        0 <= value < math.inf for weight in given for value in get_ends(weight)
    ):
        raise ConfigurationError(
            f"Expected {len(losses)} loss_weights, finite and none negative. "
            f"Received: {[_describe_weight(weight) for weight in given]}."
        )
    return hard, tuple(given)


class _Remainder(Schedule):
    """An equal part of what scheduled hard labels leave to the other losses."""

    def __init__(self, hard: Schedule, parts: int) -> None:
        super().__init__()
        self.hard = hard
        self.parts = parts

    def at(self, epoch: int, epochs: int) -> float:
        return (1.0 - self.hard.at(epoch, epochs)) / self.parts


def _check_losses(given: Any, task: Task) -> None:
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


def _describe_weight(weight: float | Schedule) -> Any:
    return type(weight).__name__ if isinstance(weight, Schedule) else weight
