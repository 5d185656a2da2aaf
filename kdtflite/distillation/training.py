"""What every distiller is as a Keras model: compile, fit, evaluate, predict, save."""

from __future__ import annotations

import abc
import contextlib
import inspect
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.callbacks import append_callbacks, build_callbacks
from kdtflite.distillation.checks.calibration import calibrate_on_first_batches
from kdtflite.distillation.checks.errors import refuse_endless, translate_errors
from kdtflite.distillation.checks.first_batch import check_first_batch
from kdtflite.distillation.checks.teacher_score import ReportTeachers, TeacherScore, draw_batch
from kdtflite.distillation.joint_objective import JointObjective
from kdtflite.distillation.objective import Objective
from kdtflite.distillation.step import CachedBatch
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.weights_files import load_weights, save_weights
from kdtflite.errors import ConfigurationError
from kdtflite.models.keras3.data import to_tf_keras_data
from kdtflite.models.keras3.objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)
from kdtflite.models.keras_internals import flatten_layers
from kdtflite.progress import say

__all__ = ["BaseDistiller"]


class BaseDistiller(keras.Model):
    """A Keras model whose training step is that of one or several students.

    A subclass sets `student` and `_objective` and brings `call` and `train_step`.

    Args:
        students: The tf_keras models that are trained.
        name: Name of this model.
    """

    student: keras.Model
    # A plain object: Keras would count the metrics in it among the students' weights.
    _objective: Objective | JointObjective
    _weight_arguments = "hard_label_weight= and loss_weights="
    _arguments: Mapping[str, Any]
    _said_what_misses = False
    reports_teachers = True  # whether the next `fit` says how good they are

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Keeps the arguments of the constructor for `get_config`."""
        made = super().__new__(cls, *args, **kwargs)
        with contextlib.suppress(TypeError):  # the constructor itself will say what is wrong
            bound = inspect.signature(cls.__init__).bind(made, *args, **kwargs).arguments
            given = {name: value for name, value in bound.items() if name != "self"}
            given.update(given.pop("options", {}))
            # Past Keras, which would track, train and save the models among them.
            object.__setattr__(made, "_arguments", MappingProxyType(given))
        return made

    def __init__(self, students: Sequence[keras.Model], *, name: str) -> None:
        # Inputs reach the students as they are, and the loss is scaled where a student needs it,
        # whatever the global policy was when each was made.
        super().__init__(name=name, autocast=False, dtype=_choose_policy(students))
        # Metrics already hold the values of all workers; Keras would add them up over the workers.
        self.distribute_reduction_method = "first"
        self.built = True  # the students are; this model has no weights of its own

    @property
    def trained_model(self) -> keras.Model:
        """The model to convert, evaluate and ship: the student."""
        return self.student

    @property
    def students(self) -> list[keras.Model]:
        """The models that are trained."""
        return [self.student]

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """What the optimizer changes: the students' weights, then those of adapters in losses."""
        own = [v for student in self.students for v in student.trainable_variables]
        # Students may have layers in common.
        return [*{id(v): v for v in own}.values(), *self._objective.trainable_variables]

    @property
    def loss_variables(self) -> list[tf.Variable]:
        """What the losses train or remember; to resume a training, restore these as well."""
        return self._objective.variables

    @property
    def uses_randomness(self) -> bool:
        """Whether a training step draws random numbers, beside those of the students' layers."""
        return self._objective.uses_randomness

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of the loss and its terms, then the compiled metrics."""
        compiled = [] if self.compiled_metrics is None else self.compiled_metrics.metrics
        return [*self._objective.metrics, *compiled]

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Moves the schedules of weights and temperatures to `epoch`, from 0, of `epochs`."""
        self._objective.begin_epoch(epoch, epochs)

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
            loss: The hard-label loss. It may be left out only with a hard_label_weight of 0. Where
                there are several objectives: one for all, or a dict by name.
            metrics: Metrics of the outputs; where there are several, also as a dict by name.
            weighted_metrics: The same, weighted by `sample_weight`.
            **kwargs: steps_per_execution, jit_compile, run_eagerly.

        Raises:
            ConfigurationError: A loss or option that cannot be used here, or an object of
                Keras 3 that has no counterpart, by name.
        """
        if "loss_weights" in kwargs:
            raise ConfigurationError(
                "compile() takes no loss_weights here. Weigh the terms with "
                f"{self._weight_arguments} of {type(self).__name__}()."
            )
        python = [teacher.name for teacher in self._frozen_teachers if teacher.runs_python]
        if kwargs.get("jit_compile") and python:
            raise ConfigurationError(
                f"XLA cannot compile a step that calls the teacher {python[0]!r}, which runs in "
                "Python. Leave out jit_compile=True, or store the teacher's outputs first with "
                "kdtflite.cache_teacher."
            )
        loss, metrics = self._pick(loss, "loss"), self._pick(metrics, "metrics")
        weighted_metrics = self._pick(weighted_metrics, "weighted_metrics")
        self._objective.compile(loss)
        super().compile(
            optimizer=to_tf_keras_optimizer(optimizer),
            loss=to_tf_keras_loss(loss),
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
        """Trains as `tf_keras.Model.fit`.

        A quantization-aware student whose activation ranges were not set yet is first calibrated
        on the first batches. Keras 3 callbacks are converted or refused by name.

        Raises:
            ShapeMismatchError: Samples that the student cannot take.
            DataError: Labels that are missing or that the loss cannot take; samples that are not
                batched.
            TrainingError: The loss or a weight became NaN or infinite. With the callback
                TerminateOnNaN the training ends without an error, as in Keras.
        """
        callbacks = build_callbacks(callbacks, self, watched=self.students)
        refuse_endless(x, kwargs.get("steps_per_epoch"), "steps_per_epoch")
        if (validation := kwargs.get("validation_data")) is not None:
            kwargs["validation_data"] = to_tf_keras_data(validation)
            refuse_endless(validation, kwargs.get("validation_steps"), "validation_steps")
        x = self._prepare_training(to_tf_keras_data(x), y, batch_size, epochs, kwargs)
        if self.reports_teachers:
            self.reports_teachers = False  # once is enough
            callbacks = append_callbacks(callbacks, ReportTeachers(self._list_scores()))
            self._compare_answers(x)
        with translate_errors():
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Evaluates as `tf_keras.Model.evaluate`: the hard-label loss and the metrics.

        Without a loss on the labels, the loss is the distillation loss.
        """
        refuse_endless(x, steps, "steps")
        x, callbacks = to_tf_keras_data(x), build_callbacks(callbacks)
        with translate_errors():
            return super().evaluate(
                x, y, batch_size, verbose, sample_weight, steps, callbacks, **kwargs
            )

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Returns the outputs, as `tf_keras.Model.predict`."""
        refuse_endless(x, steps, "steps")
        x, callbacks = to_tf_keras_data(x), build_callbacks(callbacks)
        with translate_errors():
            return super().predict(x, batch_size, verbose, steps, callbacks, **kwargs)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student, so that `ModelCheckpoint` keeps what one ships."""
        self.trained_model.save(filepath, *args, **kwargs)

    def save_weights(
        self, filepath: Any, overwrite: bool = True, save_format: Any = None, options: Any = None
    ) -> None:
        """Saves weights as `tf_keras.Model.save_weights`, in files that the student loads too."""
        if len(self.students) != 1:
            super().save_weights(filepath, overwrite, save_format, options)
            return
        given = {"overwrite": overwrite, "save_format": save_format, "options": options}
        save_weights(self, self.trained_model, filepath, super().save_weights, **given)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads weights that `save_weights` of this model or of its student wrote."""
        if len(self.students) != 1:
            return super().load_weights(filepath, *args, **kwargs)
        read = super().load_weights
        return load_weights(self, self.trained_model, filepath, read, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments with which `from_config` makes this distiller anew.

        The models are the very same objects: a configuration holds no weights, and a teacher
        without its weights teaches nothing.
        """
        config = dict(self._arguments)
        if "student" in config:
            config["student"] = self.student
        if "students" in config:
            config["students"] = list(self.students)
        return config

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Any:
        """Returns a distiller, not compiled, with the arguments that `get_config` returned."""
        del custom_objects
        return cls(**config)

    @abc.abstractmethod
    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on one batch and returns the running means of every loss term and metric."""

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates on one batch: the hard-label loss and the metrics.

        Where there is no loss on the labels, the loss is the distillation loss.
        """
        x, y, sample_weight = self._unpack(data)
        asks_teacher = self._objective.learns_from_teacher_alone
        missing = asks_teacher and not self._can_teach(x)
        if missing and not self._said_what_misses:
            self._said_what_misses = True
            say(
                "There is no loss to validate with: the labels have no loss, and the cached "
                "teacher has no outputs for these samples. Pass a loss to compile(), or validate "
                "on the batches of a cache."
            )
        outputs = self._evaluate(x, y, sample_weight, asks_teacher=asks_teacher and not missing)
        results = self.compute_metrics(x, y, outputs, sample_weight)
        left_out = {mean.name for mean in self._objective.term_metrics}
        left_out |= {self._objective.loss.name} if missing else set()
        return {name: value for name, value in results.items() if name not in left_out}

    def _note_bad_samples(self, x: Any) -> None:
        """Makes the loss NaN if a sample is not finite.

        Some processors' kernels of ReLU turn NaN into 0, and the training would continue with
        samples that teach nothing.
        """
        for part in tf.nest.flatten(x):
            if isinstance(part, tf.Tensor) and part.dtype.is_floating:
                finite = tf.reduce_all(tf.math.is_finite(part))
                self._objective.loss.total.assign_add(tf.where(finite, 0.0, math.nan))

    def _unpack(self, data: Any) -> tuple[Any, Any, Any]:
        """Returns samples, labels and weights of a batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._note_bad_samples(x)
        return x, self._pick(y, "y"), self._pick(sample_weight, "sample_weight")

    def _evaluate(self, x: Any, y: Any, sample_weight: Any, *, asks_teacher: bool) -> Any:
        """Tracks the loss of a batch in evaluation and returns the outputs.

        Args:
            x: Samples.
            y: Labels or None.
            sample_weight: Weights or None.
            asks_teacher: Whether the distillation losses are needed.
        """
        del asks_teacher
        # Not self(...): of several outputs Keras would drop the masks where one has none.
        outputs = self.call(x, training=False)
        self._objective.evaluate(y, outputs, sample_weight, self._sum_regularization())
        return outputs

    def _pick(self, given: Any, what: str) -> Any:
        """Returns what is given for the only output, maybe by its name; else raises.

        Args:
            given: A loss, metrics, labels or weights, or a dict of them by the output's name.
            what: Their name, for the message.
        """
        del what
        return given

    @property
    def _frozen_teachers(self) -> list[Teacher]:
        """The teachers that do not learn."""
        return []

    def _list_scores(self) -> list[tuple[str, TeacherScore]]:
        """Returns the name of each teacher whose answers are compared with the labels."""
        return []

    def _compare_answers(self, x: Any) -> None:
        """Says so if a teacher answers differently when it is given the same batch twice."""
        varying = [teacher for teacher in self._frozen_teachers if teacher.may_vary]
        if not varying or (batch := draw_batch(x)) is None:
            return
        for teacher in varying:
            # Made-up samples may cause errors that training would not; real ones, the step raises.
            with contextlib.suppress(Exception):
                teacher.check_repeats(batch)

    def _can_teach(self, x: Any) -> bool:
        """Whether every teacher gives outputs for the samples of a batch."""
        own = any(teacher.own_batches for teacher in self._frozen_teachers)
        return isinstance(x, CachedBatch) or not own

    def _prepare_training(
        self, x: Any, y: Any, batch_size: int | None, epochs: int, options: dict[str, Any]
    ) -> Any:
        """Checks and calibrates before the first step; returns `x`, complete."""
        del epochs, options
        x = check_first_batch(
            self.students[0],
            x,
            y,
            check_labels=lambda labels: self._objective.check_labels(self._pick(labels, "y")),
            check_samples=self._takes_samples_unchanged,
        )
        for student in self.students:
            x = calibrate_on_first_batches(
                student, x, batch_size=batch_size, prepare_inputs=self._prepare_inputs
            )
        return x

    @property
    def _takes_samples_unchanged(self) -> bool:
        return True

    def _prepare_inputs(self, x: Any) -> Any:
        """Returns the students' inputs of a batch."""
        return x.inputs if isinstance(x, CachedBatch) else x

    def _sum_regularization(self) -> tf.Tensor | float:
        losses = [tf.cast(value, tf.float32) for value in self.losses]
        return tf.add_n(losses) if losses else 0.0


def _choose_policy(students: Sequence[keras.Model]) -> str:
    """Returns the policy under which Keras scales the loss if a student computes in float16."""
    layers = [layer for each in students for layer in flatten_layers(each)]
    half = any(layer.compute_dtype == "float16" for layer in layers)
    return "mixed_float16" if half else "float32"
