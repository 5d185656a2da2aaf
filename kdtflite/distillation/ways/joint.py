"""Several objectives trained at once: what peers and multi-task students have in common."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.calibrate_first import calibrate_on_first_batches
from kdtflite.distillation.callbacks import all_callbacks
from kdtflite.distillation.check_models import check_loss
from kdtflite.distillation.distiller import policy_of
from kdtflite.distillation.losses import HardLabels
from kdtflite.distillation.objective import Objective, per_sample, share_of_mean
from kdtflite.distillation.outputs import Outputs, Task, as_classes, to_logits
from kdtflite.distillation.own_errors import own_errors
from kdtflite.distillation.schedules import Schedule, current
from kdtflite.distillation.step import Observed, Step, Taught
from kdtflite.errors import ConfigurationError, DataError, choose
from kdtflite.models.keras3_objects import (
    to_tf_keras_loss,
    to_tf_keras_metric,
    to_tf_keras_optimizer,
)

__all__ = ["JointDistiller", "Part"]

_NONE = 0.0  # regularization is of the students, not of an objective


@dataclass(frozen=True, eq=False)
class Part:
    """One of the objectives.

    Attributes:
        objective: Its terms.
        outputs: What the student, or its output, gives.
        task: What it decides.
        weight: Weight of the objective in the sum.
    """

    objective: Objective
    outputs: Outputs
    task: Task
    weight: float | Schedule = 1.0

    def classes(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns logits, the classes of one decision on the last axis."""
        return as_classes(to_logits(outputs, self.outputs), self.task)


class JointDistiller(keras.Model):
    """Trains on a weighted sum of named objectives, each with its own loss terms and metrics.

        L = Σₖ vₖ · Lₖ + regularization

    Outputs, metrics and terms go by the objectives' names.

    Args:
        parts: The objectives by name.
        students: The models that are trained.
        name: Name of this model.
    """

    def __init__(
        self, parts: Mapping[str, Part], students: Sequence[keras.Model], *, name: str
    ) -> None:
        # The loss is scaled if any student needs it.
        policies = {policy_of(student) for student in students}
        policy = "mixed_float16" if "mixed_float16" in policies else "float32"
        super().__init__(name=name, autocast=False, dtype=policy)
        # What metrics give is every worker's already; Keras would add it up over the workers.
        self.distribute_reduction_method = "first"
        # In an object of its own: Keras would count the metrics among the students' weights.
        self._parts = _Parts(dict(parts))
        self._students = list(students)
        self.built = True

    @abc.abstractmethod
    def observe(self, x: Any, *, training: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns outputs by name and tapped features by path, of one forward pass."""

    @abc.abstractmethod
    def taught(self, x: Any, logits: Mapping[str, tf.Tensor]) -> dict[str, Observed]:
        """Returns what each objective's student is to learn from, by name.

        Args:
            x: The batch.
            logits: What the students gave, by name.
        """

    def checked(self, x: Any, y: Any) -> Any:
        """Returns what `fit` was given as x, or raises if the first batch cannot be used."""
        return x

    def labels_of(self, y: Any, name: str) -> Any:
        """Returns the labels of one objective, or None."""
        return y

    def weights_of(self, sample_weight: Any, name: str) -> Any:
        """Returns the sample weights of one objective, or None."""
        return sample_weight

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the outputs by name."""
        del mask
        return self.observe(inputs, training=bool(training))[0]

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
            optimizer: Name or optimizer, one for all that is trained.
            loss: The hard-label loss: one for every objective, or a dict of them by name. It may
                be left out where hard_label_weight is 0.
            metrics: Metrics of every output, or a dict of them by name.
            weighted_metrics: The same, weighted by `sample_weight`.
            **kwargs: steps_per_execution, jit_compile, run_eagerly.

        Raises:
            ConfigurationError: No loss where labels count, or one that reads something else.
        """
        if "loss_weights" in kwargs:
            raise ConfigurationError(
                "compile() takes no loss_weights here: objectives are weighed in the constructor."
            )
        parts = self._parts.by_name
        if isinstance(loss, Mapping):
            for name in loss:
                choose(name, parts, what="objective (a key of loss=)")
        for name, part in parts.items():
            given = to_tf_keras_loss(loss.get(name) if isinstance(loss, Mapping) else loss)
            weight = part.objective.hard_label_weight
            if given is None and weight != 0:
                raise ConfigurationError(
                    f"hard_label_weight={weight} of {name!r} needs a loss for the hard labels. "
                    "Pass loss= to compile(), or hard_label_weight=0."
                )
            part.objective.hard_labels = None if given is None else HardLabels(given)
            if part.objective.hard_labels is not None:
                check_loss(part.objective.hard_labels, part.outputs, part.task)
        super().compile(
            optimizer=to_tf_keras_optimizer(optimizer),
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
        """Trains as `tf_keras.Model.fit`; a quantization-aware student is calibrated first."""
        callbacks = all_callbacks(callbacks, self._parts)
        x = self.checked(x, y)
        for student in self._students:
            x = calibrate_on_first_batches(
                student, x, batch_size=batch_size, inputs_of=_student_inputs
            )
        with own_errors():
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def evaluate(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Evaluates as `tf_keras.Model.evaluate`: the hard-label losses and metrics."""
        with own_errors():
            return super().evaluate(*args, callbacks=all_callbacks(callbacks), **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Trains on one batch and returns the running means of every loss term and metric."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            outputs, features = self.observe(_student_inputs(x), training=True)
            seen = {name: part.classes(outputs[name]) for name, part in self._parts.by_name.items()}
            taught = self.taught(x, seen)
            regularization = self._regularization()
            total = tf.zeros([tf.shape(next(iter(seen.values())))[0]])
            for name, part in self._parts.by_name.items():
                mask = getattr(outputs[name], "_keras_mask", None)
                student = Observed(seen[name], features, mask=mask)
                step = Step(student, taught[name], self.labels_of(y, name))
                total += current(part.weight) * part.objective(
                    step,
                    self._hard(y, outputs, name),
                    self.weights_of(sample_weight, name),
                    _NONE,
                )
            self._parts.track(total, regularization)
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = share_of_mean(total) + regularization / replicas
        self.optimizer.minimize(loss, self.trained_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates on one batch: the hard-label losses and metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        outputs, _ = self.observe(x, training=False)
        total = tf.zeros([tf.shape(next(iter(outputs.values())))[0]])
        for name, part in self._parts.by_name.items():
            hard = self._hard(y, outputs, name)
            if hard is not None:
                mask = getattr(outputs[name], "_keras_mask", None)
                values = per_sample(hard, mask, self.weights_of(sample_weight, name))
                part.objective.track(values, _NONE)
                total += current(part.weight) * values
        self._parts.track(total, self._regularization())
        results = self.compute_metrics(x, y, outputs, sample_weight)
        training_only = {mean.name for part in self._parts for mean in part.objective.metrics}
        training_only.add(self._parts.regularization.name)
        return {name: value for name, value in results.items() if name not in training_only}

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """Returns the means of terms and metrics; metrics go by the objectives' names."""
        names = list(y_pred)
        weights = {name: self.weights_of(sample_weight, name) for name in names}
        given = None if all(weight is None for weight in weights.values()) else weights
        labels = {name: self.labels_of(y, name) for name in names}
        return super().compute_metrics(x, labels, y_pred, given)

    @property
    def trained_variables(self) -> list[tf.Variable]:
        """What the optimizer changes: the students' weights, then those of adapters in losses."""
        adapters = [v for part in self._parts for v in part.objective.trainable_variables]
        return [*self.trainable_variables, *adapters]

    @property
    def loss_variables(self) -> list[tf.Variable]:
        """What the losses train or remember; to resume a training, restore these as well."""
        return [variable for part in self._parts for variable in part.objective.variables]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The means of the loss, of every objective and its terms, then the compiled metrics."""
        means = [self._parts.loss]
        for part in self._parts:
            means.extend([part.objective.loss, *part.objective.metrics[:-1]])
        compiled = [] if self.compiled_metrics is None else self.compiled_metrics.metrics
        return [*means, self._parts.regularization, *compiled]

    def _hard(self, y: Any, outputs: Mapping[str, Any], name: str) -> tf.Tensor | None:
        hard_labels = self._parts.by_name[name].objective.hard_labels
        if hard_labels is None:
            return None
        labels = self.labels_of(y, name)
        if labels is None:
            raise DataError(
                f"Expected labels for {name!r}. Received: none. Pass y, as a dict by output where "
                "there are several, or hard_label_weight=0 and no loss for it."
            )
        return hard_labels(labels, outputs[name])

    def _regularization(self) -> tf.Tensor:
        return tf.add_n([tf.cast(value, tf.float32) for value in self.losses] or [0.0])


def _student_inputs(x: Any) -> Any:
    return x.inputs if isinstance(x, Taught) else x


class _Parts:
    """The objectives by name, the means of their sum, and the schedules of their weights."""

    def __init__(self, by_name: dict[str, Part]) -> None:
        self.by_name = by_name
        self.loss = keras.metrics.Mean(name="loss")
        self.regularization = keras.metrics.Mean(name="regularization_loss")

    def __iter__(self) -> Iterator[Part]:
        return iter(self.by_name.values())

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        for part in self:
            part.objective.begin_epoch(epoch, epochs)
            if isinstance(part.weight, Schedule):
                part.weight.begin(epoch, epochs)

    def track(self, total: tf.Tensor, regularization: tf.Tensor) -> None:
        self.loss.update_state(total + regularization)
        self.regularization.update_state(regularization)
