"""Hidden states of transformers (arXiv 1910.01108 and 1909.10351)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.base import Shape
from kdtflite.distillation.losses.norms import normalize
from kdtflite.distillation.losses.transformers.base import TokenLoss
from kdtflite.errors import ShapeMismatchError

__all__ = ["HiddenStates"]


class HiddenStates(TokenLoss):
    """Difference between hidden states, token by token.

        cosine: L = mean over tokens of (1 - cosine of h_student·W and h_teacher)
        mse:    L = mean over tokens and width of (h_student·W - h_teacher)²

    "cosine" aligns the directions (DistilBERT, Sanh et al., arXiv 1910.01108, whose weight of it
    is 1); "mse" is the hidden-state loss of TinyBERT (Jiao et al., arXiv 1909.10351, equation 8).
    W is a trained projection, without bias, where the widths differ, and left out where they are
    equal. Several pairs of layers add up.

    A sample's value is the mean over its own tokens, except for those that the student masks; 0 if
    all are masked. Every sample has the same weight, whatever its length.

    Args:
        student_layers: One or more layers of the student, by name, with outputs (batch, tokens,
            width); all axes in between count as tokens, and (batch, width) is one token.
        teacher_layers: As many layers of the teacher, in the same order, with as many tokens.
        kind: "cosine" or "mse".
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `kind` is another word.
        ShapeMismatchError: At `build`: different numbers of tokens, or an unknown width.
    """

    default_name = "hidden_states"
    kinds = ("cosine", "mse")

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        kind: str = "cosine",
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, kind=kind, name=name)
        # A tuple, not a list: Keras wraps lists to track what is in them.
        self._projections: tuple[keras.layers.Dense | None, ...] = ()

    @property
    def variables(self) -> list[tf.Variable]:  # noqa: D102
        return self.trainable_variables

    @property
    def trainable_variables(self) -> list[tf.Variable]:  # noqa: D102
        return [v for layer in self._projections if layer for v in layer.trainable_variables]

    def __call__(
        self, student_features: Sequence[Any], teacher_features: Sequence[Any], mask: Any = None
    ) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32.

        Args:
            student_features: One tensor per layer of `student_layers`, batch first.
            teacher_features: One tensor per layer of `teacher_layers`, in the same order.
            mask: Which tokens count, shape (batch, tokens), for features of three axes.
        """
        student = [tf.cast(features, tf.float32) for features in student_features]
        teacher = [tf.cast(features, tf.float64) for features in teacher_features]
        if not self._projections:
            self._build([tuple(f.shape) for f in student], [tuple(f.shape) for f in teacher])
        triples = zip(self._projections, student, teacher, strict=True)
        return tf.add_n(
            [
                self._compare(s if projection is None else projection(s), t, mask)
                for projection, s, t in triples
            ]
        )

    def _build(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
        names = zip(self.student_layers, self.teacher_layers, strict=True)
        with tf.init_scope():
            self._projections = tuple(
                self._make_projection(tuple(s), tuple(t), *pair)
                for s, t, pair in zip(student_shapes, teacher_shapes, names, strict=True)
            )

    def _make_projection(
        self, student: Shape, teacher: Shape, student_layer: str, teacher_layer: str
    ) -> keras.layers.Dense | None:
        same_tokens = len(student) == len(teacher) >= 2 and all(
            s is None or t is None or s == t
            for s, t in zip(student[1:-1], teacher[1:-1], strict=True)
        )
        if not same_tokens or student[-1] is None or teacher[-1] is None:
            raise ShapeMismatchError(
                f"{self.name}: hidden states are compared token by token. Expected shapes (batch, "
                "tokens, width) with the same tokens and known widths. Received: student layer "
                f"{student_layer!r} {student}, teacher layer {teacher_layer!r} {teacher}."
            )
        if student[-1] == teacher[-1]:
            return None
        layer = keras.layers.Dense(teacher[-1], use_bias=False, dtype="float32")
        layer.build((None, student[-1]))
        return layer

    def _compare(self, student: tf.Tensor, teacher: tf.Tensor, mask: Any) -> tf.Tensor:
        student = tf.cast(student, tf.float64)
        if self.kind == "cosine":
            # Of rows of length 1, ‖a - b‖² / 2 = 1 - a·b, without its rounding near 0.
            tokens = tf.reduce_sum(tf.square(normalize(student) - normalize(teacher)), -1) / 2.0
        else:
            tokens = tf.reduce_mean(tf.math.squared_difference(student, teacher), axis=-1)
        batch = tf.shape(tokens)[0]
        tokens = tf.reshape(tokens, [batch, tf.reduce_prod(tf.shape(tokens)[1:])])
        counts = tf.ones_like(tokens)
        if mask is not None and student.shape.rank == 3:
            counts *= tf.cast(mask, tokens.dtype)
        total = tf.reduce_sum(tf.where(counts > 0, tokens, 0.0), axis=1)
        return tf.cast(tf.math.divide_no_nan(total, tf.reduce_sum(counts, axis=1)), tf.float32)
