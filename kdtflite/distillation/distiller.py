"""Distiller: a Keras model whose training step learns from a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.calibrate_first import calibrate_on_first_batches
from kdtflite.distillation.check_first import check_first_batch, label_outside
from kdtflite.distillation.losses import DistillationLoss, HardLabels, SoftTargets
from kdtflite.distillation.teachers.model import ModelTeacher, logits_of, resolve_outputs
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    ShapeMismatchError,
    UnsupportedModelError,
)
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.inspect import number_of_classes
from kdtflite.models.keras3_callbacks import to_tf_keras_callback
from kdtflite.models.keras3_objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)

__all__ = ["Distiller"]


class Distiller(keras.Model):
    """Trains a student on the labels and on a teacher's soft targets.

        L = w · L_hard(y, student(x)) + Σᵢ wᵢ · Lᵢ(student(x), teacher(x)) + regularization

    (Hinton et al., arXiv 1503.02531.) Compile, fit, evaluate and predict as any Keras model;
    `evaluate`, `predict` and `save` are the student's. A step runs the teacher once, with
    training=False and without gradient, and the student once. `sample_weight` and
    `class_weight` weigh every term, and each term is the mean over the global batch.

    Args:
        student: A tf_keras model (float, or from `quantize_aware`), or a Keras 3 model, which
            is converted: the trained model is then `distiller.student`.
        teacher: A tf_keras or Keras 3 model. Its weights are never trained, saved or counted.
        losses: Distillation losses; by default `SoftTargets(temperature=4.0)`.
        hard_label_weight: w, from 0 (the teacher alone) to 1.
        loss_weights: wᵢ, one a loss; by default 1 - w in equal parts.
        teacher_preprocessing: Turns the student's inputs into the teacher's, with TensorFlow
            operations.
        teacher_outputs: "logits", "probabilities", or "auto" to read it off the last layer.
        student_outputs: The same for the student. Students best end in logits.
        name: Name of this model.

    Raises:
        ShapeMismatchError: Teacher and student differ in classes or inputs.
        ConfigurationError: Weights or losses that make no sense.
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
        losses: Sequence[DistillationLoss] | None = None,
        hard_label_weight: float = 0.1,
        loss_weights: Sequence[float] | None = None,
        teacher_preprocessing: Callable[[Any], Any] | None = None,
        teacher_outputs: str = "auto",
        student_outputs: str = "auto",
        name: str = "distiller",
    ) -> None:
        student = as_tf_keras(student)
        # Inputs reach the student as they are, and the loss is scaled where the student needs it,
        # whatever the global policy was when each was made.
        super().__init__(name=name, autocast=False, dtype=_policy(student))
        self.student = student
        self._teacher = ModelTeacher(
            teacher, preprocessing=teacher_preprocessing, outputs=teacher_outputs
        )
        _check_classes(self._teacher.model, self.student)
        self._student_outputs = resolve_outputs(self.student, student_outputs, role="student")
        self._teacher.check_inputs(self.student)
        # A tuple, not a list: Keras wraps lists to track what is in them.
        self._distillation_losses = _losses([SoftTargets()] if losses is None else losses)
        self._hard_label_weight, self._loss_weights = _weights(
            self._distillation_losses, hard_label_weight, loss_weights
        )
        self._hard_labels: HardLabels | None = None
        self._means = _Means(
            HardLabels.name, *(loss.name for loss in self._distillation_losses), "regularization"
        )
        self.built = True  # the student is; this model has no weights of its own

    @property
    def teacher(self) -> keras.Model:
        """The teacher."""
        return self._teacher.model

    def __dir__(self) -> list[str]:
        # save_weights("*.weights.h5") stores every model that it finds by dir().
        return [name for name in super().__dir__() if name != "teacher"]

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        """Returns the student's outputs, shape (batch, classes)."""
        del mask
        return self.student(inputs, training=training)

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
        if loss is None and self._hard_label_weight > 0:
            raise ConfigurationError(
                f"hard_label_weight={self._hard_label_weight} needs a loss for the hard labels. "
                "Pass loss= to compile(), or hard_label_weight=0 to Distiller()."
            )
        self._hard_labels = None if loss is None else HardLabels(loss)
        if self._hard_labels is not None:
            self._check_loss_reads_outputs(self._hard_labels)
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
            UnsupportedModelError: A ModelCheckpoint of a quantization-aware student in a .keras
                file.
        """
        callbacks = _callbacks(callbacks)
        for callback in getattr(callbacks, "callbacks", callbacks) or ():
            if isinstance(callback, keras.callbacks.ModelCheckpoint) and (
                not callback.save_weights_only
            ):
                self._check_format(callback.filepath)
        x = check_first_batch(self.student, self._hard_labels, x, y)
        x = calibrate_on_first_batches(self.student, x, batch_size=batch_size)
        try:
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            if problem := label_outside(error):
                raise DataError(problem) from None
            raise

    def evaluate(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Evaluates the student, as `tf_keras.Model.evaluate`: its hard-label loss and metrics."""
        return super().evaluate(*args, callbacks=_callbacks(callbacks), **kwargs)

    def predict(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Returns the student's outputs, as `tf_keras.Model.predict`."""
        return super().predict(*args, callbacks=_callbacks(callbacks), **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on one batch and returns the running means of every loss term and metric."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher_logits = self._teacher(x)
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            terms = self._terms(y, outputs, teacher_logits)
            loss = self._reduce(terms, outputs, sample_weight)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates the student on one batch: its hard-label loss and metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self(x, training=False)
        terms = (
            {}
            if self._hard_labels is None
            else {HardLabels.name: (1.0, self._hard_labels(y, outputs))}
        )
        self._reduce(terms, outputs, sample_weight)
        results = self.compute_metrics(x, y, outputs, sample_weight)
        training_only = {mean.name for mean in self._means.terms.values()}
        return {name: value for name, value in results.items() if name not in training_only}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of the loss and its terms, then the compiled metrics."""
        compiled = [] if self.compiled_metrics is None else self.compiled_metrics.metrics
        terms = dict(self._means.terms)
        if self._hard_labels is None:
            del terms[HardLabels.name]
        return [self._means.loss, *terms.values(), *compiled]

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student, so that `ModelCheckpoint` keeps what one ships.

        Raises:
            UnsupportedModelError: A quantization-aware student into a .keras file, which Keras
                writes without complaint and cannot load again.
        """
        self._check_format(filepath)
        self.student.save(filepath, *args, **kwargs)

    def _check_format(self, filepath: Any) -> None:
        if str(filepath).endswith(".keras") and hasattr(self.student, "quantization"):
            raise UnsupportedModelError(
                f"A quantization-aware student cannot be loaded from a .keras file ({filepath}). "
                "Save it as .h5 or a SavedModel folder, or its weights alone (save_weights, "
                "save_weights_only=True)."
            )

    def _terms(
        self, y: Any, outputs: tf.Tensor, teacher_logits: tf.Tensor
    ) -> dict[str, tuple[float, tf.Tensor]]:
        """Returns weight and values, shape (batch,), of every loss term by name."""
        terms = {}
        if self._hard_labels is not None:
            terms[HardLabels.name] = (self._hard_label_weight, self._hard_labels(y, outputs))
        student_logits = logits_of(outputs, self._student_outputs)
        for loss, weight in zip(self._distillation_losses, self._loss_weights, strict=True):
            terms[loss.name] = (weight, loss(student_logits, teacher_logits))
        return terms

    def _reduce(
        self, terms: dict[str, tuple[float, tf.Tensor]], outputs: tf.Tensor, sample_weight: Any
    ) -> tf.Tensor:
        """Returns this replica's share of the mean loss over the global batch, and tracks it.

        The shares add up over the replicas, as their gradients do. Keras would instead take the
        mean of the replicas' means, which is another number when they are not equally full.
        """
        batch = tf.shape(outputs)[0]
        total = tf.zeros([batch])
        for name, (weight, values) in terms.items():
            if sample_weight is not None:
                values *= tf.reshape(tf.cast(sample_weight, tf.float32), [batch])
            self._means.terms[name].update_state(values)
            total += weight * values
        context = tf.distribute.get_replica_context()
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        everywhere = tf.cast(batch, tf.float32)
        if replicas > 1 and context is not None:
            everywhere = context.all_reduce(tf.distribute.ReduceOp.SUM, everywhere)
        regularization = tf.add_n([tf.cast(v, tf.float32) for v in self.losses] or [0.0])
        self._means.terms["regularization"].update_state(regularization)
        self._means.loss.update_state(total + regularization)
        share = tf.math.divide_no_nan(tf.reduce_sum(total), everywhere)
        return share + regularization / replicas

    def _check_loss_reads_outputs(self, hard_labels: HardLabels) -> None:
        reads_logits = hard_labels.reads_logits()
        gives_logits = self._student_outputs == "logits"
        if reads_logits is not None and reads_logits != gives_logits:
            kind = type(hard_labels.loss).__name__
            named = kind if kind != "function" else hard_labels.loss.__name__
            raise ConfigurationError(
                f"The student gives {self._student_outputs}, but the loss {named} reads "
                f"{'logits' if reads_logits else 'probabilities'}. Pass for example "
                f"loss=SparseCategoricalCrossentropy(from_logits={gives_logits})."
            )


class _Means:
    """The running means of the loss and its terms.

    A plain object: Keras would count metrics that it tracks among the model's weights.
    """

    def __init__(self, *terms: str) -> None:
        self.loss = keras.metrics.Mean(name="loss")
        self.terms = {term: keras.metrics.Mean(name=f"{term}_loss") for term in terms}


def _policy(student: keras.Model) -> str:
    """Returns the policy under which Keras scales the loss if `student` computes in float16."""
    layers = student._flatten_layers(include_self=False)
    half = any(layer.compute_dtype == "float16" for layer in layers)
    return "mixed_float16" if half else "float32"


def _callbacks(callbacks: Any) -> Any:
    if callbacks is None or isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    return [to_tf_keras_callback(callback) for callback in tf.nest.flatten(callbacks)]


def _check_classes(teacher: keras.Model, student: keras.Model) -> None:
    for role, model in (("teacher", teacher), ("student", student)):
        if not getattr(model, "inputs", None) or not model.outputs:
            raise UnsupportedModelError(
                f"Expected a Sequential or Functional {role}. Received: {model.name!r}, a "
                f"{type(model).__name__} whose inputs and outputs cannot be seen. Build it with "
                "keras.Model(inputs, outputs)."
            )
        if len(model.outputs) != 1:
            raise UnsupportedModelError(
                f"Expected a {role} with one output. Received: {role} {model.name!r} with "
                f"{len(model.outputs)}. Build a model that ends in the classes alone."
            )
    if number_of_classes(teacher) != number_of_classes(student):
        raise ShapeMismatchError(
            "The teacher and the student classify into different numbers of classes. "
            f"Expected the same last dimension. Received: teacher output "
            f"{tuple(teacher.output_shape)}, student output {tuple(student.output_shape)}. "
            "Change the student's last layer."
        )
    if number_of_classes(student) < 2:
        raise ShapeMismatchError(
            "A softmax over one class teaches nothing. Expected two or more classes. Received: "
            f"student output {tuple(student.output_shape)}. "
            "Give a yes-or-no model two outputs, one a class."
        )


def _losses(given: Any) -> tuple[DistillationLoss, ...]:
    sequence = isinstance(given, list | tuple)
    if not sequence or not all(isinstance(loss, DistillationLoss) for loss in given):
        raise ConfigurationError(
            f"Expected losses to be a list of kdtflite.losses. Received: {given!r}."
        )
    names = [loss.name for loss in given]
    taken = {HardLabels.name, "regularization"}
    if len(set(names)) < len(names) or taken & set(names):
        raise ConfigurationError(
            f"Expected every loss to have a name of its own, other than {sorted(taken)}. "
            f"Received: {', '.join(names)}. Pass name= to the losses."
        )
    return tuple(given)


def _weights(
    losses: tuple[DistillationLoss, ...], hard: float, given: Sequence[float] | None
) -> tuple[float, tuple[float, ...]]:
    if not 0 <= hard <= 1:
        raise ConfigurationError(
            f"Expected hard_label_weight from 0 to 1. Received: {hard}. "
            "Use loss_weights= to weigh the other terms freely."
        )
    if given is None:
        given = [(1.0 - hard) / len(losses)] * len(losses) if losses else []
    if len(given) != len(losses) or not all(0 <= weight < math.inf for weight in given):
        raise ConfigurationError(
            f"Expected {len(losses)} loss_weights, finite and none negative. "
            f"Received: {list(given)}."
        )
    return float(hard), tuple(float(weight) for weight in given)
