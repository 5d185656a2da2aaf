"""Distiller: a Keras model whose training step learns from a teacher."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.auto import Auto, Choice, as_auto
from kdtflite.distillation.calibrate_first import calibrate_on_first_batches
from kdtflite.distillation.callbacks import all_callbacks
from kdtflite.distillation.check_first import check_first_batch, label_outside
from kdtflite.distillation.check_models import check_loss, check_mixing, check_models
from kdtflite.distillation.losses import DistillationLoss, HardLabels, SoftTargets
from kdtflite.distillation.losses.state import LossState
from kdtflite.distillation.mixing import Mixing
from kdtflite.distillation.objective import Objective, share_of_mean
from kdtflite.distillation.outputs import as_classes, resolve_outputs, resolve_task, to_logits
from kdtflite.distillation.own_errors import own_errors
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.step import Observed, Step, Taught
from kdtflite.distillation.taps import TappedModel
from kdtflite.distillation.teachers.failures import python_error
from kdtflite.distillation.teachers.model import check_ends
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.trials import choose_on
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.keras3_objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)

__all__ = ["Distiller"]


class Distiller(keras.Model):
    """Trains a student on the labels and on what a teacher shows.

        L = w · L_hard(y, student(x)) + Σᵢ wᵢ · Lᵢ(student(x), teacher(x)) + regularization

    (Hinton et al., arXiv 1503.02531.) Compile, fit, evaluate and predict as any Keras model;
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
        losses: Distillation losses; by default `SoftTargets(temperature=4.0)`. "auto", or an
            `Auto`: `fit` chooses by short runs on its validation data, see `choice`.
        hard_label_weight: w, from 0 (the teacher alone) to 1, or a schedule; by default 0.1 with
            losses on logits, 1 with others alone.
        loss_weights: wᵢ, one a loss, numbers or schedules; by default each loss's own, and 1 - w
            in equal parts for those on logits.
        teacher_preprocessing: Turns what `fit` is given into the teacher's inputs, with TensorFlow
            operations: another size, scaling or domain.
        student_preprocessing: The same for the student; in `evaluate` and `predict` too.
        mixing: `MixUp` or `CutMix`: student and teacher see the same mixed samples.
        teacher_outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or
            "auto" to read it off the last layer.
        student_outputs: The same for the student. Students best end in logits.
        task: "multiclass", "multilabel" (yes or no for each output), "regression", or "auto" to
            read it off the outputs: a sigmoid or a single unit means yes or no.
        name: Name of this model.

    Raises:
        ShapeMismatchError: Teacher and student, or tapped layers, do not fit each other.
        ConfigurationError: Weights or losses that make no sense, layers that do not exist.
        UnsupportedModelError: A model that is not a built Keras model with one output.

    Example:
        >>> distiller = Distiller(student, teacher, hard_label_weight=0.1)
        >>> distiller.compile("adam", SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
        >>> distiller.fit(x, y, validation_data=(x_val, y_val), epochs=20)
    """

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
        # Inputs reach the student as they are, and the loss is scaled where the student needs it,
        # whatever the global policy was when each was made.
        super().__init__(name=name, autocast=False, dtype=policy_of(student))
        # What metrics give is every worker's already; Keras would add it up over the workers.
        self.distribute_reduction_method = "first"
        self.student = student
        self._preprocessing = student_preprocessing
        self._mixing = check_mixing(mixing)
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
        self._student_outputs = resolve_outputs(student, student_outputs, role="student", task=task)
        if task == "auto" and self._teacher is not None and self._teacher.outputs == "sigmoid":
            task = "multilabel"
        self.task = resolve_task(student, self._student_outputs, task)
        check_models(self._teacher, student, self.task, own_inputs=student_preprocessing is None)
        if self._auto is not None:
            losses, hard_label_weight = [], 1.0  # until it is chosen
        self._set_losses(
            [SoftTargets()] if losses is None else losses, hard_label_weight, loss_weights
        )
        self.built = True  # the student is; this model has no weights of its own

    @property
    def teacher(self) -> Any:
        """The teacher: the Keras model where it is one, else the Teacher, or None."""
        return getattr(self._teacher, "model", self._teacher)

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """What the optimizer changes: the student's weights, then those of adapters in losses."""
        return [*self.student.trainable_variables, *self._objective.trainable_variables]

    @property
    def loss_variables(self) -> list[tf.Variable]:
        """What the losses train or remember; to resume a training, restore these as well."""
        return self._objective.variables

    @property
    def draws(self) -> bool:
        """Whether a training step draws random numbers, beside those of the student's layers."""
        return self._mixing is not None or self._objective.draws

    def adopt(self, choice: Choice) -> None:
        """Trains from now on by what `losses="auto"` chose, here or elsewhere."""
        chosen = (self._auto or Auto()).named(choice.chosen)
        hard_labels = self._objective.hard_labels
        self._set_losses(chosen.losses(), chosen.hard_label_weight, chosen.loss_weights)
        self._objective.hard_labels = hard_labels
        self.train_function = self.test_function = None  # of the losses before
        self.choice = choice

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Moves the schedules of weights and temperatures on to `epoch`, from 0, of `epochs`."""
        self._objective.begin_epoch(epoch, epochs)

    def __dir__(self) -> list[str]:
        # save_weights("*.weights.h5") stores every model that it finds by dir().
        return [name for name in super().__dir__() if name != "teacher"]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Returns the student's outputs, shape (batch, ..., classes)."""
        del mask
        return self.student(self._student_inputs(inputs), training=training)

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Any = None,
        *,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training, as `tf_keras.Model.compile`.

        Args:
            optimizer: Name or optimizer; a Keras 3 one is converted by its configuration.
            loss: The hard-label loss. It may be left out only with hard_label_weight=0.
            metrics: Metrics of the student's outputs.
            weighted_metrics: The same, weighted by `sample_weight`.
            **kwargs: steps_per_execution, jit_compile, run_eagerly.

        Raises:
            ConfigurationError: A loss or option that cannot be used here, or an object of
                Keras 3 that has no counterpart, by name.
        """
        if "loss_weights" in kwargs:
            raise ConfigurationError(
                "Distiller.compile() takes no loss_weights: the student has one output. "
                "Weigh the terms with hard_label_weight= and loss_weights= of Distiller()."
            )
        loss = to_tf_keras_loss(loss)
        weight = self._objective.hard_label_weight
        if loss is None and weight != 0:
            raise ConfigurationError(
                f"hard_label_weight={weight} needs a loss for the hard labels. "
                "Pass loss= to compile(), or hard_label_weight=0 to Distiller()."
            )
        hard_labels = None if loss is None else HardLabels(loss)
        if hard_labels is not None:
            check_loss(hard_labels, self._student_outputs, self.task)
        self._objective.hard_labels = hard_labels
        super().compile(
            optimizer=to_tf_keras_optimizer(optimizer),
            loss=loss,
            metrics=to_tf_keras_metric(metrics),
            weighted_metrics=to_tf_keras_metric(weighted_metrics),
            **kwargs,
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the student, as `tf_keras.Model.fit`.

        A quantization-aware student whose activation ranges were not set yet is calibrated on
        the first batches first. Keras 3 callbacks are converted or refused by name.

        Raises:
            ShapeMismatchError: Samples that the student cannot take.
            DataError: Labels that the loss cannot take, or none; samples that are not batched.
        """
        callbacks = all_callbacks(callbacks, self)
        x = check_first_batch(
            self.student,
            self._objective.hard_labels,
            x,
            y,
            preprocessed=self._preprocessing is not None,
        )
        x = calibrate_on_first_batches(
            self.student, x, batch_size=batch_size, inputs_of=self._student_inputs
        )
        if self._auto is not None and self.choice is None:
            self.adopt(choose_on(self, self._auto, x, y, batch_size, epochs, kwargs))
        try:
            with own_errors():
                return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        except tf.errors.OpError as error:
            if cause := python_error(error):
                raise cause from None
            if problem := label_outside(error):
                raise DataError(problem) from None
            raise

    def evaluate(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Evaluates the student, as `tf_keras.Model.evaluate`: its hard-label loss and metrics."""
        with own_errors():
            return super().evaluate(*args, callbacks=all_callbacks(callbacks), **kwargs)

    def predict(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Returns the student's outputs, as `tf_keras.Model.predict`."""
        with own_errors():
            return super().predict(*args, callbacks=all_callbacks(callbacks), **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on one batch and returns the running means of every loss term and metric."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        mixed = None if self._mixing is None else self._mixing(x)
        x = x if mixed is None else mixed.inputs
        gradients = self._objective.needs_input_gradient
        with contextlib.ExitStack() as recording:
            inputs_recorded = recording if gradients else None
            taught = self._taught(x, inputs_recorded)
            with tf.GradientTape() as tape:
                outputs, seen = self._tapped.observe(
                    self._student_inputs(x), training=True, recording=inputs_recorded
                )
                hard = self._hard(y, outputs)
                if mixed is not None and hard is not None:
                    hard = mixed.mix(hard, self._hard(mixed.partners(y), outputs))
                logits = as_classes(to_logits(outputs, self._student_outputs), self.task)
                seen = Observed(logits, seen.features, seen.input_gradient, seen.mask)
                regularization = self._regularization()
                total = self._objective(
                    Step(seen, seen if taught is None else taught, y),
                    hard,
                    sample_weight,
                    regularization,
                )
                replicas = tf.distribute.get_strategy().num_replicas_in_sync
                loss = share_of_mean(total) + regularization / replicas
        self.optimizer.minimize(loss, self.trained_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates the student on one batch: its hard-label loss and metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self(x, training=False)
        mask = getattr(outputs, "_keras_mask", None)
        self._objective.evaluate(
            self._hard(y, outputs), mask, sample_weight, self._regularization()
        )
        results = self.compute_metrics(x, y, outputs, sample_weight)
        training_only = {mean.name for mean in self._objective.metrics}
        return {name: value for name, value in results.items() if name not in training_only}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of the loss and its terms, then the compiled metrics."""
        compiled = [] if self.compiled_metrics is None else self.compiled_metrics.metrics
        return [self._objective.loss, *self._objective.metrics, *compiled]

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student, so that `ModelCheckpoint` keeps what one ships."""
        self.student.save(filepath, *args, **kwargs)

    def _set_losses(self, losses: Any, hard_label_weight: Any, loss_weights: Any) -> None:
        objective = Objective(losses, hard_label_weight, loss_weights, self.task)
        self._tapped = TappedModel(self.student, objective.student_layers, role="student")
        if self._teacher is not None:
            if objective.needs_input_gradient and not self._teacher.differentiable:
                raise ConfigurationError(
                    "A loss on gradients by the inputs needs a Keras model as the teacher. "
                    f"Received: a {type(self._teacher).__name__}, through which no gradient flows."
                )
            self._teacher = copy.copy(self._teacher)  # others may tap other layers of the same
            objective.build(self._tapped.shapes, self._teacher.tap(objective.teacher_layers))
        self._objective = objective
        # Checkpoints of this model keep what the losses train; the student's own files do not.
        self._loss_state = LossState(objective.variables)

    def _taught(self, x: Any, recording: contextlib.ExitStack | None) -> Observed | None:
        """Returns what the teacher shows of a batch; None where no loss looks at it."""
        if self._teacher is None or not self._objective.losses:
            return None
        seen = self._teacher.observe(x, recording)
        logits = as_classes(seen.logits, self.task)
        return Observed(logits, seen.features, seen.input_gradient, seen.mask)

    def _student_inputs(self, x: Any) -> Any:
        x = x.inputs if isinstance(x, Taught) else x
        return x if self._preprocessing is None else self._preprocessing(x)

    def _hard(self, y: Any, outputs: tf.Tensor) -> tf.Tensor | None:
        hard_labels = self._objective.hard_labels
        return None if hard_labels is None else hard_labels(y, outputs)

    def _regularization(self) -> tf.Tensor:
        return tf.add_n([tf.cast(value, tf.float32) for value in self.losses] or [0.0])


def policy_of(student: keras.Model) -> str:
    """Returns the policy under which Keras scales the loss if `student` computes in float16."""
    layers = student._flatten_layers(include_self=False)
    half = any(layer.compute_dtype == "float16" for layer in layers)
    return "mixed_float16" if half else "float32"
