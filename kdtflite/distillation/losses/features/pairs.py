"""Losses that compare feature maps, a layer of the student with one of the teacher."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.base import FeatureLoss, Shape
from kdtflite.errors import ConfigurationError, ShapeMismatchError

__all__ = ["FeaturePairs", "JoinedFeatures", "Pair", "mean_of_sample", "sum_of_sample"]


class JoinedFeatures(FeatureLoss):
    """Base of the losses on feature maps: dtypes, and the adapters that join two layers.

    Adapters are float32 layers of the loss, outside of the student, made when the shapes are
    known: by the Distiller, or by the first call of a loss that is used alone. They always run
    with training=True, since losses are computed in training steps only.
    """

    def __init__(
        self, student_layers: str | Sequence[str], teacher_layers: str | Sequence[str], *, name: str
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        self._adapters: list[keras.layers.Layer | None] | None = None

    def build(  # noqa: D102
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        self._adapters = self._make_adapters(
            [
                Pair(self.name, s, t, tuple(student_shapes[s]), tuple(teacher_shapes[t]))
                for s, t in zip(self.student_layers, self.teacher_layers, strict=True)
            ]
        )

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
        students = self._tensors("student", self.student_layers, student_features)
        teachers = self._tensors("teacher", self.teacher_layers, teacher_features)
        if self._adapters is None:
            with tf.init_scope():  # variables, should a graph be under way
                self.build(
                    _shapes(self.student_layers, students), _shapes(self.teacher_layers, teachers)
                )
        return self._loss(students, teachers, self._adapters or [])

    def _tensors(self, role: str, layers: Sequence[str], given: Sequence[Any]) -> list[tf.Tensor]:
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
        """Returns the built adapter of one pair, or None where it needs none.

        Raises:
            ShapeMismatchError: The pair cannot be joined.
        """
        del pair, index
        return None

    @abc.abstractmethod
    def _loss(
        self,
        students: Sequence[tf.Tensor],
        teachers: Sequence[tf.Tensor],
        adapters: Sequence[keras.layers.Layer | None],
    ) -> tf.Tensor:
        """Returns the loss of float32 features, shape (batch,), float32."""


class FeaturePairs(JoinedFeatures):
    """Base of the losses that are a sum over the pairs of layers."""

    def _loss(
        self,
        students: Sequence[tf.Tensor],
        teachers: Sequence[tf.Tensor],
        adapters: Sequence[keras.layers.Layer | None],
    ) -> tf.Tensor:
        pairs = zip(students, teachers, adapters, strict=True)
        return tf.add_n([self._loss_of_pair(*pair, index) for index, pair in enumerate(pairs)])

    @abc.abstractmethod
    def _loss_of_pair(
        self,
        student: tf.Tensor,
        teacher: tf.Tensor,
        adapter: keras.layers.Layer | None,
        index: int,
    ) -> tf.Tensor:
        """Returns the loss of one pair of float32 features, shape (batch,), float32."""


@dataclass(frozen=True)
class Pair:
    """Two layers to be compared, and their shapes.

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
        """Raises unless both have as many axes, with `positions` at least one between the ends."""
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
        """Returns how many channels the student's layer has, and the teacher's."""
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


def mean_of_sample(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean over everything but the batch."""
    return tf.reduce_mean(values, axis=range(1, values.shape.rank))


def sum_of_sample(values: tf.Tensor) -> tf.Tensor:
    """Returns the sum over everything but the batch."""
    return tf.reduce_sum(values, axis=range(1, values.shape.rank))


def _shapes(layers: Sequence[str], tensors: Sequence[tf.Tensor]) -> dict[str, Shape]:
    return {path: tuple(x.shape) for path, x in zip(layers, tensors, strict=True)}
