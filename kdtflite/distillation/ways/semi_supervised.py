"""Distillation with unlabelled samples: pseudo-labels of a teacher that is sure enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.auto import Auto
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.losses import DistillationLoss, HardLabels
from kdtflite.distillation.replicas import over_replicas
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["UNLABELLED", "SemiSupervisedDistiller", "semi_supervised_batches"]

UNLABELLED = -1
"""Label of a sample without one: the class index, or every value of its row."""


class SemiSupervisedDistiller(Distiller):
    """A Distiller whose samples need not all have labels.

        L = w · mean over the labelled of L_hard + Σᵢ wᵢ · mean over all of aₙ · Lᵢ

    aₙ is 1 for labelled samples, and for an unlabelled one where the teacher is sure of its class,
    max softmax(z_teacher) ≥ threshold, else 0 (FixMatch, Sohn et al., arXiv 2001.07685, whose
    unlabelled loss is `HardTargets`; Noisy Student, Xie et al., arXiv 1911.04252, learns from soft
    targets and filters at 0.3). For yes-or-no labels a sample counts where every label is sure.

    A sample without a label has the label -1, as in scikit-learn, or a row of -1. Metrics are those
    of the labelled samples; `accepted_share` is how many of the unlabelled ones count. Losses
    between the samples of a batch compare all of them and give a value for those that count;
    losses that read labels are given the teacher's class where there is none.

    Args:
        student: As `Distiller` takes it.
        teacher: The same.
        threshold: The least confidence, from 0 (all samples count) to 1; FixMatch's 0.95.
        **options: Options of `Distiller`, but no `mixing` and no losses="auto".

    Raises:
        ConfigurationError: Regression, which has no confidence, or options that do not go
            together with samples without labels.

    Example:
        >>> distiller = SemiSupervisedDistiller(student, teacher, threshold=0.95)
        >>> distiller.compile("adam", SparseCategoricalCrossentropy(from_logits=True))
        >>> distiller.fit(semi_supervised_batches((x, y), x_unlabelled), epochs=20)
    """

    def __init__(
        self, student: Any, teacher: Any, *, threshold: float = 0.95, **options: Any
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigurationError(
                f"Expected a threshold from 0 to 1. Received: threshold={threshold}."
            )
        if teacher is None or options.get("mixing") is not None:
            raise ConfigurationError(
                "Unlabelled samples need a teacher, and cannot be mixed with labelled ones. "
                "Leave out mixing=, and pass a teacher."
            )
        if isinstance(options.get("losses"), str | Auto):
            raise ConfigurationError(
                "Losses cannot be chosen with unlabelled samples. Expected a list of losses. "
                f"Received: losses={options['losses']!r}."
            )
        self._gate = _Gate(threshold)
        options.setdefault("name", "semi_supervised_distiller")
        super().__init__(student, teacher, **options)
        if self.task == "regression":
            raise ConfigurationError(
                "A teacher's confidence is that in a class. Received: a regression student."
            )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training, as `Distiller.compile`."""
        super().compile(*args, **kwargs)
        if self._objective.hard_labels is not None:
            self._objective.hard_labels = _OfLabelled(self._objective.hard_labels.loss)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Those of `Distiller`, and the share of unlabelled samples that count."""
        return [*super().metrics, self._gate.accepted_share]

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates the student on one batch: its hard-label loss and metrics."""
        results = super().test_step(data)
        return {
            name: value for name, value in results.items() if name != self._gate.accepted_share.name
        }

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """Returns the means of terms, and the metrics of the labelled samples."""
        if y is not None:
            rows = _labelled(y)
            y, y_pred = tf.boolean_mask(y, rows), _masked(y_pred, rows)
            if sample_weight is not None:
                sample_weight = tf.boolean_mask(sample_weight, rows)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _set_losses(self, losses: Any, hard_label_weight: Any, loss_weights: Any) -> None:
        if isinstance(losses, list | tuple):
            losses = [
                _Gated(loss, self._gate, tracks=not number)
                if isinstance(loss, DistillationLoss)
                else loss
                for number, loss in enumerate(losses)
            ]
        super()._set_losses(losses, hard_label_weight, loss_weights)


def semi_supervised_batches(
    labelled: tuple[Any, Any],
    unlabelled: Any,
    *,
    batch_size: int = 32,
    unlabelled_ratio: int = 1,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Returns batches in which labelled samples come first and unlabelled ones after.

    An epoch is one pass over the unlabelled samples; the labelled ones are repeated, or a part of
    them drawn, to go with them. Both are shuffled anew every epoch.

    Args:
        labelled: Samples and labels (x, y); x an array or a structure of arrays.
        unlabelled: Samples of the same structure.
        batch_size: Labelled samples a batch.
        unlabelled_ratio: Unlabelled samples for each labelled one in a batch; FixMatch takes 7.
        seed: Seed of the order.

    Returns:
        A tf.data.Dataset of batches (x, y) for `SemiSupervisedDistiller.fit`, where the label of
        unlabelled samples is -1 (in one-hot labels, a row of -1).

    Raises:
        DataError: Nothing in one of them, or samples of different kinds.
        ConfigurationError: Sizes below 1.

    Example:
        >>> batches = semi_supervised_batches((x, y), x_unlabelled, unlabelled_ratio=7)
    """
    if batch_size < 1 or unlabelled_ratio < 1:
        raise ConfigurationError(
            "Expected batch_size and unlabelled_ratio of 1 or more. Received: "
            f"batch_size={batch_size}, unlabelled_ratio={unlabelled_ratio}."
        )
    x, y = labelled
    _check_alike(x, unlabelled)
    known = tf.data.Dataset.from_tensor_slices((x, _signed(tf.convert_to_tensor(y))))
    others = tf.data.Dataset.from_tensor_slices(unlabelled)
    known = known.shuffle(len(known), seed).repeat().batch(batch_size)
    others = others.shuffle(len(others), seed).batch(batch_size * unlabelled_ratio)

    def joined(pair: tuple[Any, Any], rest: Any) -> tuple[Any, tf.Tensor]:
        samples, labels = pair
        count = tf.shape(tf.nest.flatten(rest)[0])[0]
        missing = tf.fill(
            tf.concat([[count], tf.shape(labels)[1:]], axis=0), tf.cast(UNLABELLED, labels.dtype)
        )
        together = tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=0), samples, rest)
        return together, tf.concat([labels, missing], axis=0)

    return tf.data.Dataset.zip((known, others)).map(joined).prefetch(tf.data.AUTOTUNE)


class _OfLabelled(HardLabels):
    """The loss on the labels there are, its mean over the batch that over the labelled."""

    def __call__(self, labels: Any, predictions: Any) -> tf.Tensor:
        labels = tf.convert_to_tensor(labels)
        rows = _labelled(labels)
        any_label = tf.where(_to_rank(rows, labels), labels, tf.zeros_like(labels))
        values = super().__call__(any_label, predictions)
        counts = tf.stack([tf.size(rows, tf.int64), tf.math.count_nonzero(rows)])
        every, some = tf.unstack(over_replicas(tf.cast(counts, tf.float32)))
        share = tf.math.divide_no_nan(every, some)
        return tf.where(_to_rank(rows, values), share * values, 0.0)

    @property
    def arguments(self) -> dict[str, Any]:
        # What checks the labels looks here for one that is no class.
        return {**super().arguments, "ignore_class": UNLABELLED}


class _Gate:
    """Which samples count, and how many of the unlabelled did."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.accepted_share = keras.metrics.Mean(name="accepted_share")

    def __call__(self, labelled: tf.Tensor, teacher_logits: tf.Tensor) -> tf.Tensor:
        sure = tf.reduce_max(tf.nn.softmax(tf.cast(teacher_logits, tf.float32)), axis=-1)
        while sure.shape.rank > 1:  # the least sure of its labels, or positions
            sure = tf.reduce_min(sure, axis=-1)
        return labelled | (sure >= self.threshold)


class _Gated(DistillationLoss):
    """A loss on the samples that count.

    Args:
        loss: The loss.
        gate: Says which.
        tracks: Whether this is the one that tracks how many were accepted.
    """

    def __init__(self, loss: DistillationLoss, gate: _Gate, *, tracks: bool) -> None:
        super().__init__(name=loss.name)
        self.loss = loss
        self.gate = gate
        self.tracks = tracks
        self.default_weight = loss.default_weight  # type: ignore[misc]  # those of what it wraps
        self.needs_input_gradient = loss.needs_input_gradient  # type: ignore[misc]
        self.tasks = loss.tasks  # type: ignore[misc]

    @property
    def student_layers(self) -> tuple[str, ...]:
        return self.loss.student_layers

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        return self.loss.teacher_layers

    @property
    def variables(self) -> list[tf.Variable]:
        return self.loss.variables

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        return self.loss.trainable_variables

    @property
    def schedules(self) -> list[Schedule]:
        return self.loss.schedules

    def build(self, student_shapes: Mapping[str, Any], teacher_shapes: Mapping[str, Any]) -> None:
        self.loss.build(student_shapes, teacher_shapes)

    def of_step(self, step: Step) -> tf.Tensor:
        labels = None if step.labels is None else tf.convert_to_tensor(step.labels)
        count = tf.shape(step.teacher.logits)[0]
        labelled = tf.zeros([count], tf.bool) if labels is None else _labelled(labels)
        counts = self.gate(labelled, step.teacher.logits)
        if self.tracks:
            self.gate.accepted_share.update_state(counts, tf.cast(~labelled, tf.float32))
        if labels is not None:
            labels = tf.where(
                _to_rank(labelled, labels), labels, _pseudo_labels(step.teacher.logits, labels)
            )
        values = self.loss.of_step(Step(step.student, step.teacher, labels))
        return tf.where(_to_rank(counts, values), values, tf.zeros_like(values))


def _pseudo_labels(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the teacher's classes in the form of `labels`: indices, or one-hot rows."""
    chosen = tf.argmax(logits, axis=-1)
    if labels.shape.rank == logits.shape.rank and labels.shape[-1] == logits.shape[-1]:
        return tf.one_hot(chosen, logits.shape[-1], dtype=labels.dtype)
    return tf.cast(tf.reshape(chosen, tf.shape(labels)), labels.dtype)


def _labelled(y: Any) -> tf.Tensor:
    """Returns which samples have a label, shape (batch,)."""
    y = tf.convert_to_tensor(y)
    known = y != tf.cast(UNLABELLED, y.dtype)
    return tf.reduce_any(tf.reshape(known, [tf.shape(y)[0], -1]), axis=1)


def _masked(outputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    kept = tf.boolean_mask(outputs, rows)
    mask = getattr(outputs, "_keras_mask", None)
    if mask is not None:
        kept._keras_mask = tf.boolean_mask(mask, rows)
    return kept


def _to_rank(rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.reshape(rows, [-1] + [1] * (like.shape.rank - 1))


def _signed(labels: tf.Tensor) -> tf.Tensor:
    """Returns labels in a dtype that holds -1."""
    return tf.cast(labels, tf.int32) if labels.dtype.is_unsigned else labels


def _check_alike(x: Any, unlabelled: Any) -> None:
    def described(value: Any) -> str:
        return ", ".join(
            f"{tf.convert_to_tensor(part).dtype.name} {tuple(part.shape)}"
            for part in tf.nest.flatten(value)
        )

    pairs: Sequence[tuple[Any, Any]] = []
    try:
        tf.nest.assert_same_structure(x, unlabelled)
        pairs = list(zip(tf.nest.flatten(x), tf.nest.flatten(unlabelled), strict=True))
        alike = all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in pairs)
    except (TypeError, ValueError):
        alike = False
    if not alike:
        raise DataError(
            "Expected unlabelled samples of the same shape and dtype as the labelled ones. "
            f"Received: labelled {described(x)}, unlabelled {described(unlabelled)}."
        )
    if not all(len(part) for pair in pairs for part in pair):
        raise DataError(
            "Expected labelled and unlabelled samples. Received: "
            f"{described(x)} and {described(unlabelled)}."
        )
