"""Distiller: a Keras model whose training step learns from a teacher."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf

from kdtflite.arguments import check_arguments
from kdtflite.distillation.checks.compatibility import check_teacher
from kdtflite.distillation.checks.teacher_score import TeacherScore
from kdtflite.distillation.losses import DistillationLoss, SoftTargets
from kdtflite.distillation.losses.state import LossState
from kdtflite.distillation.mixing import Mixed, Mixing
from kdtflite.distillation.objective import Objective
from kdtflite.distillation.outputs import (
    as_classes,
    pick_for_output,
    resolve_outputs,
    resolve_task,
)
from kdtflite.distillation.replicas import reduce_loss
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.search.auto import Auto, Choice, as_auto
from kdtflite.distillation.search.trials import choose_losses
from kdtflite.distillation.step import Observed, Step
from kdtflite.distillation.taps import TappedModel
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.teachers.model import check_ends
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.training import BaseDistiller
from kdtflite.errors import ConfigurationError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.inspect import find_output_step

__all__ = ["Distiller"]


class Distiller(BaseDistiller):
    """Trains a student on the labels and on a teacher's outputs.

        L = w · L_hard(y, student(x)) + Σᵢ wᵢ · Lᵢ(student(x), teacher(x)) + regularization

    (Hinton et al., arXiv 1503.02531.) Compile, fit, evaluate and predict as with any Keras model;
    `evaluate`, `predict` and `save` are the student's. A step runs the teacher once, with
    training=False and without gradient, and the student once, feature taps included.
    `sample_weight` and `class_weight` weigh every term, and each term is the mean over the global
    batch.

    Args:
        student: A tf_keras model (float, or from `quantize_aware`), or a Keras 3 model, which
            is converted: the trained model is then `distiller.student`.
        teacher: A Keras model, a `kdtflite.teachers` Teacher (an ensemble, a file, a cache), a
            path, a list of these, or a Python function. Its weights are never trained, saved or
            counted. None only where `losses` is empty: training on the labels alone.
        losses: Distillation losses; by default `SoftTargets(temperature=4.0)`. With "auto", or an
            `Auto`, `fit` chooses by short runs on its validation data, see `choice`.
        hard_label_weight: w, from 0 (the teacher alone) to 1, or a schedule; by default 0.1 with
            losses on logits, 1 with others alone.
        loss_weights: One wᵢ per loss, numbers or schedules; by default each loss's own, and equal
            parts of 1 - w for those on logits.
        teacher_preprocessing: Turns the inputs of `fit` into the teacher's, with TensorFlow
            operations: another size, scaling or domain.
        student_preprocessing: The same for the student; also used by `evaluate` and `predict`.
        mixing: `MixUp` or `CutMix`: student and teacher see the same mixed samples.
        teacher_outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or
            "auto" to read it off the last layer.
        student_outputs: The same for the student. Students should end in logits.
        task: "multiclass", "multilabel" (yes or no for each output), "regression", or "auto" to
            read it off the outputs: a sigmoid or a single unit means yes or no. The guess is
            printed, and refused where the loss or the labels contradict it.
        name: Name of this model.

    Raises:
        ShapeMismatchError: Teacher and student, or tapped layers, do not fit each other.
        ConfigurationError: Invalid weights or losses, or layers that do not exist.
        UnsupportedModelError: A model that is not a built Keras model with one output.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> data = kdtflite.data.load_dataset("digits")
        >>> def build(units):
        ...     layers = [keras.layers.Flatten(), keras.layers.Dense(units, "relu")]
        ...     return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])
        >>> distiller = kdtflite.Distiller(build(8), build(64), hard_label_weight=0.1)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile("adam", loss, ["accuracy"])
        >>> history = distiller.fit(data.train.x, data.train.y, verbose=0)
        >>> list(history.history)[:2]
        ['loss', 'hard_labels_loss']
    """

    _objective: Objective

    @check_arguments
    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        losses: Sequence[DistillationLoss] | Auto | str | None = None,
        hard_label_weight: float | Schedule | None = None,
        loss_weights: Sequence[float | Schedule] | None = None,
        teacher_preprocessing: Callable[[Any], Any] | None = None,
        student_preprocessing: Callable[[Any], Any] | None = None,
        mixing: Mixing | None = None,
        teacher_outputs: str = "auto",
        student_outputs: str = "auto",
        task: str = "auto",
        name: str = "distiller",
    ) -> None:
        student = as_tf_keras(student)
        super().__init__([student], name=name)
        self.student = student
        self._preprocessing = student_preprocessing
        self._mixing = _check_mixing(mixing)
        self._auto = as_auto(losses, hard_label_weight, loss_weights)
        self.choice: Choice | None = None
        if teacher is None and losses not in ([], ()):
            raise ConfigurationError(
                "Expected a teacher. Received: None. Without one, pass losses=[] to train on the "
                "labels alone."
            )
        self._teacher = (
            None
            if teacher is None
            else as_teacher(
                teacher, preprocessing=teacher_preprocessing, outputs=teacher_outputs, task=task
            )
        )
        check_ends(student, role="student")
        self._task_is_guessed = task == "auto"
        self.student_outputs = resolve_outputs(student, student_outputs, role="student", task=task)
        self.task = resolve_task(
            student, self.student_outputs, task, getattr(self._teacher, "outputs", None)
        )
        check_teacher(self._teacher, student, self.task, check_inputs=student_preprocessing is None)
        if self._auto is not None:
            losses, hard_label_weight = [], 1.0  # until they are chosen
        self._set_losses(
            [SoftTargets()] if losses is None else losses, hard_label_weight, loss_weights
        )

    @property
    def teacher(self) -> Any:
        """The teacher: the Keras model where it is one, else the Teacher, or None."""
        return getattr(self._teacher, "model", self._teacher)

    @property
    def uses_randomness(self) -> bool:
        """Whether a training step draws random numbers, beside those of the student's layers."""
        return self._mixing is not None or super().uses_randomness

    def fingerprint_teacher(self) -> str:
        """Returns what changes when the teacher's outputs do; "" without a teacher."""
        return "" if self._teacher is None else self._teacher.fingerprint()

    def with_losses(
        self,
        losses: Sequence[DistillationLoss],
        hard_label_weight: float | Schedule | None = None,
        loss_weights: Sequence[float | Schedule] | None = None,
    ) -> Distiller:
        """Returns another Distiller of the same student and teacher that uses other losses.

        It shares the student, so that training either one trains it, and is not compiled.

        Args:
            losses: As the constructor takes them.
            hard_label_weight: As the constructor takes it.
            loss_weights: As the constructor takes them.
        """
        return type(self)(
            self.student,
            self._teacher,
            losses=losses,
            hard_label_weight=hard_label_weight,
            loss_weights=loss_weights,
            **self._get_options(),
        )

    def apply_choice(self, choice: Choice) -> None:
        """Trains from now on with what `losses="auto"` chose, here or elsewhere."""
        chosen = (self._auto or Auto()).find_candidate(choice.chosen)
        hard_labels = self._objective.hard_labels
        self._set_losses(chosen.losses(), chosen.hard_label_weight, chosen.loss_weights)
        self._objective.hard_labels = hard_labels
        self.train_function = self.test_function = None  # they were compiled with other losses
        self.choice = choice

    def __dir__(self) -> list[str]:
        # save_weights("*.weights.h5") stores every model that it finds by dir().
        return [name for name in super().__dir__() if name != "teacher"]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Returns the student's outputs, shape (batch, ..., classes)."""
        del mask
        return self.student(self._prepare_inputs(inputs), training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on one batch and returns the running means of every loss term and metric."""
        x, y, sample_weight = self._unpack(data)
        objective = self._objective
        mixed = None if self._mixing is None else self._mixing(x)
        x = x if mixed is None else mixed.inputs
        with contextlib.ExitStack() as stack:
            recording = stack if objective.needs_input_gradient else None
            shown = self._observe_teacher(x, recording)
            with tf.GradientTape() as tape:
                outputs, seen = self._tapped.observe(
                    self._prepare_inputs(x), training=True, recording=recording
                )
                if mixed is not None and outputs.shape.rank == 4:
                    y, sample_weight = mixed.cut(y), mixed.cut(sample_weight)
                hard, labels = self._compare_labels(y, outputs, mixed)
                seen = replace(seen, logits=objective.to_classes(outputs))
                regularization = self._sum_regularization()
                step = Step(seen, seen if shown is None else shown, labels)
                total = objective(step, hard, sample_weight, regularization)
                loss = reduce_loss(total, regularization)
        self.optimizer.minimize(loss, self.trained_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def _evaluate(self, x: Any, y: Any, sample_weight: Any, *, asks_teacher: bool) -> Any:
        if not asks_teacher:
            return super()._evaluate(x, y, sample_weight, asks_teacher=False)
        objective = self._objective
        with contextlib.ExitStack() as stack:
            recording = stack if objective.needs_input_gradient else None
            shown = self._observe_teacher(x, recording)
            outputs, seen = self._tapped.observe(
                self._prepare_inputs(x), training=False, recording=recording
            )
            seen = replace(seen, logits=objective.to_classes(outputs))
            step = Step(seen, seen if shown is None else shown, y)
            regularization = self._sum_regularization()
            objective.evaluate(y, outputs, sample_weight, regularization, step)
        return outputs

    def _list_scores(self) -> list[tuple[str, TeacherScore]]:
        score = self._objective.teacher_score
        return [] if self._teacher is None or score is None else [(self._teacher.name, score)]

    def _pick(self, given: Any, what: str) -> Any:
        return pick_for_output(given, self.student, what)

    @property
    def _frozen_teachers(self) -> list[Teacher]:
        return [] if self._teacher is None else [self._teacher]

    def _compare_labels(self, y: Any, outputs: Any, mixed: Mixed | None) -> tuple[Any, Any]:
        """Returns the hard-label loss, or None, and the labels for losses that read them."""
        hard = self._objective.compare_labels(y, outputs)
        if mixed is None or y is None or (mixed.box is not None and outputs.shape.rank == 4):
            return hard, y
        partners = mixed.select_partners(y)
        if hard is not None:
            hard = mixed.mix(hard, self._objective.compare_labels(partners, outputs))
        if self.task == "regression":
            y = tf.nest.map_structure(mixed.average, _to_floats(y), _to_floats(partners))
        return hard, y

    def _get_options(self) -> dict[str, Any]:
        """Returns the options of the constructor that do not depend on the losses."""
        return {
            "student_preprocessing": self._preprocessing,
            "mixing": self._mixing,
            "student_outputs": self.student_outputs,
            "task": self.task,
        }

    def _set_losses(self, losses: Any, hard_label_weight: Any, loss_weights: Any) -> None:
        objective = Objective(
            losses,
            hard_label_weight,
            loss_weights,
            outputs=self.student_outputs,
            task=self.task,
            output_shape=tuple(self.student.output_shape),
            guessed=self._task_is_guessed,
            scores_teacher=self._mixing is None,
            output_step=find_output_step(self.student),
        )
        self._tapped = TappedModel(self.student, objective.student_layers, role="student")
        if self._teacher is not None:
            if objective.needs_input_gradient and not self._teacher.differentiable:
                raise ConfigurationError(
                    "A loss on gradients with respect to the inputs needs a Keras model as the "
                    f"teacher. Received: a {type(self._teacher).__name__}, through which no "
                    "gradient flows."
                )
            self._teacher = copy.copy(self._teacher)  # others may tap other layers of the same
            objective.build(self._tapped.shapes, self._teacher.tap(objective.teacher_layers))
        self._objective = objective
        # Checkpoints of this model keep what the losses train; the student's own files do not.
        self._loss_state = LossState(objective.variables)

    def _prepare_training(
        self, x: Any, y: Any, batch_size: int | None, epochs: int, options: dict[str, Any]
    ) -> Any:
        x = super()._prepare_training(x, y, batch_size, epochs, options)
        if self._auto is not None and self.choice is None:
            self.apply_choice(choose_losses(self, self._auto, x, y, batch_size, epochs, options))
        return x

    @property
    def _takes_samples_unchanged(self) -> bool:
        return self._preprocessing is None

    def _prepare_inputs(self, x: Any) -> Any:
        x = super()._prepare_inputs(x)
        return x if self._preprocessing is None else self._preprocessing(x)

    def _observe_teacher(self, x: Any, recording: contextlib.ExitStack | None) -> Observed | None:
        """Returns what the teacher gives for a batch; None where no loss looks at it."""
        if self._teacher is None or not self._objective.losses:
            return None
        seen = self._teacher.observe(x, recording)
        return replace(seen, logits=as_classes(seen.logits, self.task))


def _to_floats(labels: Any) -> Any:
    return tf.nest.map_structure(lambda part: tf.cast(part, tf.float32), labels)


def _check_mixing(mixing: Any) -> Mixing | None:
    if not isinstance(mixing, Mixing | None):
        raise ConfigurationError(
            "Expected mixing to be a MixUp or CutMix of kdtflite.distillation, for example "
            f"MixUp(alpha=0.2). Received: {mixing!r}."
        )
    return mixing
