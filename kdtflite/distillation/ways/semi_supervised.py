"""Distillation with unlabeled samples: pseudo-labels of a confident teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.losses import DistillationLoss, HardLabels
from kdtflite.distillation.losses.base import WrappedLoss
from kdtflite.distillation.reduction import expand_to_rank
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.models.keras_internals import get_mask, set_mask

__all__ = ["UNLABELED", "SemiSupervisedDistiller", "semi_supervised_batches"]

UNLABELED = -1
"""The label of an unlabeled sample: the class index, or every value of its row."""


class SemiSupervisedDistiller(Distiller):
    """A Distiller for samples of which only some have labels.

        L = w · mean over labeled samples of L_hard + Σᵢ wᵢ · mean over all samples of aₙ · Lᵢ

    aₙ is 1 for a labeled sample, and for an unlabeled one where the teacher is confident,
    max softmax(z_teacher) ≥ threshold, else 0 (FixMatch, Sohn et al., arXiv 2001.07685, whose
    unlabeled loss is `HardTargets`; Noisy Student, Xie et al., arXiv 1911.04252, uses soft targets
    and filters at 0.3). With yes-or-no labels a sample counts where the teacher is confident about
    every label.

    An unlabeled sample has the label -1, as in scikit-learn, or a row of -1. Metrics are those of
    the labeled samples; `accepted_share` is the share of the unlabeled ones that count. Losses
    between the samples of a batch compare all of them and give a value for those that count;
    losses that read labels get the teacher's class where a label is missing.

    Args:
        student: As `Distiller` takes it.
        teacher: As `Distiller` takes it.
        threshold: The lowest confidence that counts, from 0 (all samples) to 1; 0.95 in FixMatch.
        **options: Options of `Distiller`, but no `mixing`.

    Raises:
        ConfigurationError: Regression, which has no confidence, or options that cannot be used
            with unlabeled samples.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> data = kdtflite.data.load_dataset("digits").train
        >>> def build(units):
        ...     layers = [keras.layers.Flatten(), keras.layers.Dense(units, "relu")]
        ...     return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])
        >>> distiller = SemiSupervisedDistiller(build(8), build(64), threshold=0.5)
        >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> batches = semi_supervised_batches((data.x[:100], data.y[:100]), data.x[100:])
        >>> history = distiller.fit(batches, verbose=0)
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
                "Unlabeled samples need a teacher, and cannot be mixed with labeled ones. "
                "Leave out mixing=, and pass a teacher."
            )
        self._gate = _Gate(threshold)
        options.setdefault("name", "semi_supervised_distiller")
        super().__init__(student, teacher, **options)
        if self.task == "regression":
            raise ConfigurationError(
                "A teacher is confident of a class. Expected a classification student. Received: a "
                "regression student."
            )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training, as `Distiller.compile`."""
        super().compile(*args, **kwargs)
        if self._objective.hard_labels is not None:
            self._objective.hard_labels = _LabeledOnly(self._objective.hard_labels.loss)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Those of `Distiller`, and the share of unlabeled samples that count."""
        return [*super().metrics, self._gate.accepted_share]

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates on one batch: the hard-label loss and the metrics."""
        results = super().test_step(data)
        return {
            name: value for name, value in results.items() if name != self._gate.accepted_share.name
        }

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        """Returns the means of the terms, and the metrics of the labeled samples."""
        if y is not None:
            rows = _find_labeled(y)
            y, y_pred = tf.boolean_mask(y, rows), _select_rows(y_pred, rows)
            if sample_weight is not None:
                sample_weight = tf.boolean_mask(sample_weight, rows)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _get_options(self) -> dict[str, Any]:
        return {**super()._get_options(), "threshold": self._gate.threshold}

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
    labeled: tuple[Any, Any],
    unlabeled: Any,
    *,
    batch_size: int = 32,
    unlabeled_ratio: int = 1,
    seed: int | None = None,
) -> tf.data.Dataset:
    """Returns batches of labeled samples followed by unlabeled ones.

    An epoch is one pass over the unlabeled samples; the labeled ones are repeated, or only a part
    of them is used. Both are reshuffled every epoch.

    Args:
        labeled: Samples and labels (x, y); x an array or a structure of arrays.
        unlabeled: Samples of the same structure.
        batch_size: Labeled samples per batch.
        unlabeled_ratio: Unlabeled samples per labeled one in a batch; 7 in FixMatch.
        seed: Seed of the shuffling.

    Returns:
        A tf.data.Dataset of batches (x, y) for `SemiSupervisedDistiller.fit`, in which the label
        of an unlabeled sample is -1 (with one-hot labels, a row of -1).

    Raises:
        DataError: No samples in one of them, or samples of different shapes or dtypes.
        ConfigurationError: Sizes below 1.

    Example:
        >>> import numpy as np
        >>> labeled = np.ones((4, 2), np.float32), np.arange(4)
        >>> batches = semi_supervised_batches(labeled, np.zeros((8, 2), np.float32), batch_size=2)
        >>> x, y = next(iter(batches))
        >>> y.numpy()[2:]
        array([-1, -1])
    """
    if batch_size < 1 or unlabeled_ratio < 1:
        raise ConfigurationError(
            "Expected batch_size and unlabeled_ratio of 1 or more. Received: "
            f"batch_size={batch_size}, unlabeled_ratio={unlabeled_ratio}."
        )
    x, y = labeled
    _check_same_kind(x, unlabeled)
    known = tf.data.Dataset.from_tensor_slices((x, _cast_signed(tf.convert_to_tensor(y))))
    others = tf.data.Dataset.from_tensor_slices(unlabeled)
    known = known.shuffle(len(known), seed).repeat().batch(batch_size)
    others = others.shuffle(len(others), seed).batch(batch_size * unlabeled_ratio)

    def join(pair: tuple[Any, Any], rest: Any) -> tuple[Any, tf.Tensor]:
        samples, labels = pair
        count = tf.shape(tf.nest.flatten(rest)[0])[0]
        missing = tf.fill(
            tf.concat([[count], tf.shape(labels)[1:]], axis=0), tf.cast(UNLABELED, labels.dtype)
        )
        together = tf.nest.map_structure(lambda a, b: tf.concat([a, b], axis=0), samples, rest)
        return together, tf.concat([labels, missing], axis=0)

    return tf.data.Dataset.zip((known, others)).map(join).prefetch(tf.data.AUTOTUNE)


class _LabeledOnly(HardLabels):
    """The loss of the labeled samples, scaled so that its batch mean is the mean over these."""

    def __call__(self, labels: Any, predictions: Any, rows: Any = None) -> tf.Tensor:
        labels = tf.convert_to_tensor(labels)
        rows = _find_labeled(labels)
        any_label = tf.where(expand_to_rank(rows, labels), labels, tf.zeros_like(labels))
        return super().__call__(any_label, predictions, rows)

    @property
    def arguments(self) -> dict[str, Any]:
        # The check of the labels reads here which label is not a class.
        return {**super().arguments, "ignore_class": UNLABELED}


class _Gate:
    """Decides which samples count, and tracks the share of the unlabeled ones that do."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.accepted_share = keras.metrics.Mean(name="accepted_share")

    def __call__(self, labeled: tf.Tensor, teacher_logits: tf.Tensor) -> tf.Tensor:
        sure = tf.reduce_max(tf.nn.softmax(tf.cast(teacher_logits, tf.float32)), axis=-1)
        while sure.shape.rank > 1:  # its least confident label or position
            sure = tf.reduce_min(sure, axis=-1)
        return labeled | (sure >= self.threshold)


class _Gated(WrappedLoss):
    """A loss restricted to the samples that count.

    Args:
        loss: The loss.
        gate: Decides which ones count.
        tracks: Whether this loss tracks the share of accepted samples, which one of several does.
    """

    def __init__(self, loss: DistillationLoss, gate: _Gate, *, tracks: bool) -> None:
        super().__init__(name=loss.name)
        self.loss = loss
        self.gate = gate
        self.tracks = tracks
        self.student_layers = loss.student_layers
        self.teacher_layers = loss.teacher_layers
        self.default_weight = loss.default_weight  # type: ignore[misc]  # as the wrapped loss
        self.needs_input_gradient = loss.needs_input_gradient  # type: ignore[misc]
        self.tasks = loss.tasks  # type: ignore[misc]

    def compute(self, step: Step) -> tf.Tensor:
        labels = None if step.labels is None else tf.convert_to_tensor(step.labels)
        count = tf.shape(step.teacher.logits)[0]
        labeled = tf.zeros([count], tf.bool) if labels is None else _find_labeled(labels)
        counts = self.gate(labeled, step.teacher.logits)
        if self.tracks:
            self.gate.accepted_share.update_state(counts, tf.cast(~labeled, tf.float32))
        if labels is not None:
            labels = tf.where(
                expand_to_rank(labeled, labels),
                labels,
                _make_pseudo_labels(step.teacher.logits, labels),
            )
        values = self.loss.compute(replace(step, labels=labels))
        return tf.where(expand_to_rank(counts, values), values, tf.zeros_like(values))


def _make_pseudo_labels(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the teacher's classes in the form of `labels`: indices or one-hot rows."""
    chosen = tf.argmax(logits, axis=-1)
    if labels.shape.rank == logits.shape.rank and labels.shape[-1] == logits.shape[-1]:
        return tf.one_hot(chosen, logits.shape[-1], dtype=labels.dtype)
    return tf.cast(tf.reshape(chosen, tf.shape(labels)), labels.dtype)


def _find_labeled(y: Any) -> tf.Tensor:
    """Returns which samples have a label, shape (batch,)."""
    y = tf.convert_to_tensor(y)
    known = y != tf.cast(UNLABELED, y.dtype)
    return tf.reduce_any(tf.reshape(known, [tf.shape(y)[0], -1]), axis=1)


def _select_rows(outputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    kept = tf.boolean_mask(outputs, rows)
    mask = get_mask(outputs)
    if mask is not None:
        set_mask(kept, tf.boolean_mask(mask, rows))
    return kept


def _cast_signed(labels: tf.Tensor) -> tf.Tensor:
    """Returns labels in a dtype that can hold -1."""
    return tf.cast(labels, tf.int32) if labels.dtype.is_unsigned else labels


def _check_same_kind(x: Any, unlabeled: Any) -> None:
    def describe(value: Any) -> str:
        return ", ".join(
            f"{tf.convert_to_tensor(part).dtype.name} {tuple(part.shape)}"
            for part in tf.nest.flatten(value)
        )

    pairs: Sequence[tuple[Any, Any]] = []
    try:
        tf.nest.assert_same_structure(x, unlabeled)
        pairs = list(zip(tf.nest.flatten(x), tf.nest.flatten(unlabeled), strict=True))
        alike = all(a.shape[1:] == b.shape[1:] and a.dtype == b.dtype for a, b in pairs)
    except (TypeError, ValueError):
        alike = False
    if not alike:
        raise DataError(
            "Expected unlabeled samples of the same shape and dtype as the labeled ones. "
            f"Received: labeled {describe(x)}, unlabeled {describe(unlabeled)}."
        )
    if not all(len(part) for pair in pairs for part in pair):
        raise DataError(
            "Expected labeled and unlabeled samples. Received: "
            f"{describe(x)} and {describe(unlabeled)}."
        )
