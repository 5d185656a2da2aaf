"""Bases of the losses that compare layers of the student with layers of the teacher."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.base import FeatureLoss, Shape
from kdtflite.errors import ConfigurationError, ShapeMismatchError

__all__ = ["FeaturePairs", "JoinedFeatures", "Pair", "mean_per_sample", "sum_per_sample"]


class JoinedFeatures(FeatureLoss):
    """Base of the losses on feature maps: dtypes, and the adapters between two layers.

    Adapters are float32 layers of the loss, outside of the student, made when the shapes are
    known: by the Distiller, or in the first call of a loss that is used alone. They always run
    with training=True, since losses are computed in training steps only.
    """

    _adapters: list[keras.layers.Layer | None] | None = None

    def _build(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
        layers = self.student_layers, self.teacher_layers
        pairs = zip(*layers, student_shapes, teacher_shapes, strict=True)
        self._adapters = self._make_adapters([Pair(self.name, *pair) for pair in pairs])

    @property
    def variables(self) -> list[tf.Variable]:  # noqa: D102
        return [v for adapter in self._adapters or () if adapter for v in adapter.variables]

    @property
    def trainable_variables(self) -> list[tf.Variable]:  # noqa: D102
        adapters = [adapter for adapter in self._adapters or () if adapter]
        return [v for adapter in adapters for v in adapter.trainable_variables]

    def __call__(  # noqa: D102
        self, student_features: Sequence[Any], teacher_features: Sequence[Any]
    ) -> tf.Tensor:
        students = self._cast("student", self.student_layers, student_features)
        teachers = self._cast("teacher", self.teacher_layers, teacher_features)
        if self._adapters is None:
            with tf.init_scope():  # creates variables, maybe while a graph is traced
                self._build([tuple(x.shape) for x in students], [tuple(x.shape) for x in teachers])
        return self._compare_all(students, teachers, self._adapters or [])

    def _cast(self, role: str, layers: Sequence[str], given: Sequence[Any]) -> list[tf.Tensor]:
        if not isinstance(given, list | tuple) or len(given) != len(layers):
            received = f"{len(given)}" if isinstance(given, list | tuple) else type(given).__name__
            raise ConfigurationError(
                f"{self.name}: expected a list with a tensor for each of the {role}'s layers "
                f"({', '.join(layers)}). Received: {received}."
            )
        return [tf.cast(features, tf.float32) for features in given]

    def _make_adapters(self, pairs: Sequence[Pair]) -> list[keras.layers.Layer | None]:
        return [self._make_adapter(pair, index) for index, pair in enumerate(pairs)]

    def _make_adapter(self, pair: Pair, index: int) -> keras.layers.Layer | None:
        """Returns the built adapter of one pair, or None if it needs no adapter.

        Raises:
            ShapeMismatchError: The pair cannot be compared.
        """
        del pair, index
        return None

    @abc.abstractmethod
    def _compare_all(
        self,
        students: Sequence[tf.Tensor],
        teachers: Sequence[tf.Tensor],
        adapters: Sequence[keras.layers.Layer | None],
    ) -> tf.Tensor:
        """Returns the loss of float32 features, shape (batch,), float32."""


class FeaturePairs(JoinedFeatures):
    """Base of the losses that are a sum over the pairs of layers."""

    def _compare_all(
        self,
        students: Sequence[tf.Tensor],
        teachers: Sequence[tf.Tensor],
        adapters: Sequence[keras.layers.Layer | None],
    ) -> tf.Tensor:
        pairs = zip(students, teachers, adapters, strict=True)
        return tf.add_n([self._compare(*pair, index) for index, pair in enumerate(pairs)])

    @abc.abstractmethod
    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        """Returns the loss of one pair of float32 features, shape (batch,), float32."""


@dataclass(frozen=True)
class Pair:
    """Two layers to compare, and their shapes.

    Attributes:
        loss: Name of the loss, for messages.
        student_layer: Path of the student's layer.
        teacher_layer: Path of the teacher's.
        student: Shape of the student's features, batch first.
        teacher: Shape of the teacher's.
    """

    loss: str
    student_layer: str
    teacher_layer: str
    student: Shape
    teacher: Shape

    def check_ranks(self, *, positions: bool = False) -> None:
        """Raises unless both have equally many axes; with `positions`, at least three."""
        if len(self.student) != len(self.teacher) or len(self.student) < 2:
            raise self.mismatch(
                "expected features with the same number of axes, (batch, ..., channels)",
                "Choose layers that both give maps, or both vectors.",
            )
        if positions and len(self.student) < 3:
            raise self.mismatch(
                "expected feature maps, (batch, height, width, channels), not vectors",
                "Choose layers before the pooling.",
            )

    def channels(self) -> tuple[int, int]:
        """Returns the numbers of channels of the student's and the teacher's layer."""
        student, teacher = self.student[-1], self.teacher[-1]
        if student is None or teacher is None:
            raise self.mismatch(
                "expected features whose last axis, the channels, has a known size",
                "Give the models' inputs their shape.",
            )
        return student, teacher

    def mismatch(self, problem: str, advice: str) -> ShapeMismatchError:
        """Returns the error that names both layers and their shapes."""
        return ShapeMismatchError(
            f"{self.loss}: {problem}. Received: student layer {self.student_layer!r} "
            f"{self.student}, teacher layer {self.teacher_layer!r} {self.teacher}. {advice}"
        )


def mean_per_sample(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean over everything but the batch."""
    return tf.reduce_mean(values, axis=range(1, values.shape.rank))


def sum_per_sample(values: tf.Tensor) -> tf.Tensor:
    """Returns the sum over everything but the batch."""
    return tf.reduce_sum(values, axis=range(1, values.shape.rank))
