"""Contrastive representation distillation (Tian, Krishnan & Isola, arXiv 1910.10699)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.base import FeatureLoss, Shape
from kdtflite.distillation.losses.checks import check_temperature
from kdtflite.distillation.losses.norms import normalize
from kdtflite.distillation.losses.relations.base import flatten_rows
from kdtflite.distillation.losses.relations.embedding_bank import EmbeddingBank
from kdtflite.distillation.schedules import Schedule, read_value
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError

__all__ = ["CRD"]


class CRD(FeatureLoss):
    """Distinguishes the teacher's embedding of the same sample from those of many others.

        L = - ln h(t, s) - Σ over N negatives n of ln(1 - h(n, s)),  and the same the other way

        h(t, s) = e^(gᵗ·gˢ/τ) / (e^(gᵗ·gˢ/τ) + N·c)

    g are trained linear projections of the flattened features of both networks to `embedding`
    values, divided by their L2 norm (Tian et al., arXiv 1910.10699, equations 10 to 19). One way
    compares the student's embedding with the teacher's of the same sample and of earlier ones, the
    other way the teacher's with the student's. The paper has c = 1/M for M training samples. Its
    authors' code instead takes the mean of e^(gᵗ·gˢ/τ) in the first batch, without which h of
    unrelated samples is far from small; so does this loss, unless it is given `dataset_size`.

    An untrained student starts near 2 · (ln N + 1), which grows while the bank fills.

    Differences from the paper: batches do not say which samples they hold. Instead of one slot per
    training sample (with momentum 0.5), a bank keeps the embeddings of the last `bank_size`
    samples, including this batch; all of another class are negatives, instead of 16384 random ones.
    Where a sample does not have one class (yes-or-no labels, sequences, no labels), all other
    samples are negatives. The positives are this batch's own. Under a distribution strategy every
    replica has its own bank, and checkpoints keep that of the first.

    Args:
        student_layers: One or more layers of the student, by name. The paper takes the last one
            before the classes, after pooling.
        teacher_layers: As many layers of the teacher, in the same order.
        embedding: Width of the projections.
        temperature: τ, positive, or a schedule.
        bank_size: How many samples the bank keeps, at 8 · embedding bytes per sample.
        dataset_size: M, the number of training samples, for the paper's c.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32: 0 if there is no negative.

    Raises:
        ConfigurationError: A size is below 1, or the temperature is not positive.
        ShapeMismatchError: At `build`: features have an unknown size other than the batch.
    """

    default_name = "crd"
    default_weight = 0.8  # β in the paper's experiments

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        embedding: int = 128,
        temperature: float | Schedule = 0.07,
        bank_size: int = 16384,
        dataset_size: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        sizes = {"embedding": embedding, "bank_size": bank_size, "dataset_size": dataset_size}
        for what, size in sizes.items():
            if size is not None and size < 1:
                raise ConfigurationError(f"Expected {what} of 1 or more. Received: {what}={size}.")
        self.embedding = embedding
        self.temperature = check_temperature(temperature)
        self.bank_size = bank_size
        self.dataset_size = dataset_size
        # A tuple, not a list: Keras wraps lists to track what is in them.
        self._contrasts: tuple[_Contrast, ...] = ()

    @property
    def variables(self) -> list[tf.Variable]:  # noqa: D102
        return [variable for contrast in self._contrasts for variable in contrast.variables]

    @property
    def trainable_variables(self) -> list[tf.Variable]:  # noqa: D102
        return [v for contrast in self._contrasts for v in contrast.trainable_variables]

    def __call__(
        self,
        student_features: Sequence[Any],
        teacher_features: Sequence[Any],
        labels: Any = None,
    ) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32, and fills the bank.

        Args:
            student_features: One tensor per layer of `student_layers`, batch first.
            teacher_features: One tensor per layer of `teacher_layers`, in the same order.
            labels: Class of each sample, shape (batch,) or (batch, 1), or a distribution over the
                classes, shape (batch, classes); None where there are no classes.
        """
        student = [tf.convert_to_tensor(features) for features in student_features]
        teacher = [tf.convert_to_tensor(features) for features in teacher_features]
        if not self._contrasts:
            self._build([tuple(f.shape) for f in student], [tuple(f.shape) for f in teacher])
        classes = _to_classes(labels, tf.shape(student[0])[0])
        temperature = read_value(self.temperature)
        pairs = zip(self._contrasts, student, teacher, strict=True)
        return tf.add_n([contrast(s, t, classes, temperature) for contrast, s, t in pairs])

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(
            *self._list_features(step),
            # A sample with several decisions has no class.
            step.labels if step.student.logits.shape.rank == 2 else None,
        )

    def _build(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
        for role, layers, shapes in (
            ("student", self.student_layers, student_shapes),
            ("teacher", self.teacher_layers, teacher_shapes),
        ):
            for layer, shape in zip(layers, shapes, strict=True):
                if len(shape) < 2 or None in shape[1:]:
                    raise ShapeMismatchError(
                        f"{self.name}: a projection needs features of a fixed size. Expected "
                        f"(batch, ...) with every other axis known. Received: {role} layer "
                        f"{layer!r} of shape {tuple(shape)}. Tap it after global pooling."
                    )
        with tf.init_scope():
            self._contrasts = tuple(
                _Contrast(s, t, self.embedding, self.bank_size, self.dataset_size)
                for s, t in zip(student_shapes, teacher_shapes, strict=True)
            )


class _Contrast:
    """The projections and the bank of one pair of layers."""

    def __init__(
        self,
        student_shape: Shape,
        teacher_shape: Shape,
        embedding: int,
        bank_size: int,
        dataset_size: int | None,
    ) -> None:
        self._student_head = _make_head(student_shape, embedding)
        self._teacher_head = _make_head(teacher_shape, embedding)
        self._bank = EmbeddingBank(bank_size, embedding)
        # ln c of the student's anchors and of the teacher's; NaN until a batch has set them.
        log_c = math.nan if dataset_size is None else -math.log(dataset_size)
        self._log_c = tf.Variable(
            [log_c, log_c],
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            name="log_c",
        )

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        return [
            *self._student_head.trainable_variables,
            *self._teacher_head.trainable_variables,
        ]

    @property
    def variables(self) -> list[tf.Variable]:
        return [*self.trainable_variables, *self._bank.variables, self._log_c]

    def __call__(
        self, student: tf.Tensor, teacher: tf.Tensor, classes: tf.Tensor, temperature: Any
    ) -> tf.Tensor:
        student = _embed(self._student_head, student)
        teacher = _embed(self._teacher_head, teacher)
        student_bank, teacher_bank, negatives = self._bank.add(student, teacher, classes)
        positive = tf.reduce_sum(student * teacher, axis=1) / temperature
        from_student = tf.matmul(student, teacher_bank, transpose_b=True) / temperature
        from_teacher = tf.matmul(teacher, student_bank, transpose_b=True) / temperature
        log_c = self._set_once(
            lambda: tf.stack(
                [_log_mean_exp(scores, negatives) for scores in (from_student, from_teacher)]
            )
        )
        return _nce(positive, from_student, negatives, log_c[0]) + _nce(
            positive, from_teacher, negatives, log_c[1]
        )

    def _set_once(self, measure: Callable[[], tf.Tensor]) -> tf.Tensor:
        """Returns ln c, shape (2,), set by the first batch that has a negative."""
        log_c = tf.convert_to_tensor(self._log_c)
        unknown = tf.math.is_nan(log_c[0])
        log_c = tf.stop_gradient(tf.cond(unknown, measure, lambda: log_c))
        self._log_c.assign(log_c)
        return tf.where(tf.math.is_nan(log_c), 0.0, log_c)  # unused where there is no negative


def _make_head(shape: Shape, embedding: int) -> keras.layers.Layer:
    head = keras.layers.Dense(embedding, dtype="float32")
    head.build((None, math.prod(size for size in shape[1:] if size is not None)))
    return head


def _embed(head: keras.layers.Layer, features: tf.Tensor) -> tf.Tensor:
    embeddings = head(tf.cast(flatten_rows(features), tf.float32))
    # The squares may overflow float32.
    return tf.cast(normalize(tf.cast(embeddings, tf.float64)), tf.float32)


def _to_classes(labels: Any, batch: tf.Tensor) -> tf.Tensor:
    """Returns the class of each sample, shape (batch,), float64; without labels, NaN."""
    if labels is None:
        return tf.fill([batch], tf.constant(math.nan, tf.float64))
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 2 and labels.shape[1] != 1:
        labels = tf.argmax(labels, axis=1)
    return tf.reshape(tf.cast(labels, tf.float64), [batch])


def _nce(
    positive: tf.Tensor, scores: tf.Tensor, negatives: tf.Tensor, log_c: tf.Tensor
) -> tf.Tensor:
    """Returns the loss of each anchor, from g·g/τ with its positive and with all in the bank."""
    count = tf.reduce_sum(tf.cast(negatives, tf.float32), axis=1)
    # h = sigmoid(score - ln(N·c)): so neither h nor 1 - h is rounded before its logarithm.
    threshold = tf.math.log(tf.maximum(count, 1.0)) + log_c
    apart = tf.nn.softplus(scores - threshold[:, None])
    share = tf.reduce_sum(tf.where(negatives, apart, 0.0), axis=1)
    return tf.where(count > 0, tf.nn.softplus(threshold - positive) + share, 0.0)


def _log_mean_exp(scores: tf.Tensor, negatives: tf.Tensor) -> tf.Tensor:
    """Returns the logarithm of the mean of e^score over the negatives; without any, NaN."""
    count = tf.reduce_sum(tf.cast(negatives, tf.float32))
    total = tf.reduce_logsumexp(tf.where(negatives, scores, -math.inf))
    return tf.where(count > 0, total - tf.math.log(tf.maximum(count, 1.0)), math.nan)
