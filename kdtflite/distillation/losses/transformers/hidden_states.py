"""Hidden states of transformers (arXiv 1910.01108 and 1909.10351)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.base import FeatureLoss, Shape
from kdtflite.distillation.losses.norms import normalized
from kdtflite.distillation.step import Step
from kdtflite.errors import ShapeMismatchError, choose

__all__ = ["HiddenStates"]


class HiddenStates(FeatureLoss):
    """Difference between hidden states, token by token.

        cosine: L = mean over tokens of (1 - cosine of h_student·W and h_teacher)
        mse:    L = mean over tokens and width of (h_student·W - h_teacher)²

    "cosine" aligns the directions (DistilBERT, Sanh et al., arXiv 1910.01108, whose weight of it
    is 1); "mse" is the hidden-state loss of TinyBERT (Jiao et al., arXiv 1909.10351, equation 8).
    W is a trained projection, without bias, where the widths differ, and left out where they are
    equal. Several pairs of layers add up.

    A sample's value is the mean over its own tokens, without those that the student masks: 0 if
    it masks all. Each sample counts alike, whatever its length.

    Args:
        student_layers: Name of a layer of the student, or several, of outputs (batch, tokens,
            width); any axes in between count as tokens, and none, (batch, width), as one.
        teacher_layers: The teacher's, in the same order, with as many tokens.
        kind: "cosine" or "mse".
        name: Name of the term in logs.

    Returns:
        One value a sample, shape (batch,), float32.

    Raises:
        ConfigurationError: Another `kind`.
        ShapeMismatchError: At `build`: other numbers of tokens, or an open width.
    """

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        kind: str = "cosine",
        name: str = "hidden_states",
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        self.kind = choose(kind, ("cosine", "mse"), what="kind of hidden-state loss")
        # A tuple, not a list: Keras wraps lists to track what is in them.
        self._projections: tuple[keras.layers.Dense | None, ...] = ()

    def build(  # noqa: D102
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        self._build(
            [student_shapes[path] for path in self.student_layers],
            [teacher_shapes[path] for path in self.teacher_layers],
        )

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
            student_features: A tensor for each of `student_layers`, batch first.
            teacher_features: A tensor for each of `teacher_layers`, in the same order.
            mask: Which tokens count, shape (batch, tokens), for features of three axes.
        """
        student = [tf.cast(features, tf.float32) for features in student_features]
        teacher = [tf.cast(features, tf.float64) for features in teacher_features]
        if not self._projections:
            self._build([tuple(f.shape) for f in student], [tuple(f.shape) for f in teacher])
        triples = zip(self._projections, student, teacher, strict=True)
        return tf.add_n(
            [
                self._of_pair(s if projection is None else projection(s), t, mask)
                for projection, s, t in triples
            ]
        )

    def of_step(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(
            [step.student.features[path] for path in self.student_layers],
            [step.teacher.features[path] for path in self.teacher_layers],
            step.student.mask,
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {"kind": self.kind, **super().get_config()}

    def _build(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
        names = zip(self.student_layers, self.teacher_layers, strict=True)
        with tf.init_scope():
            self._projections = tuple(
                self._projection(tuple(s), tuple(t), *pair)
                for s, t, pair in zip(student_shapes, teacher_shapes, names, strict=True)
            )

    def _projection(
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

    def _of_pair(self, student: tf.Tensor, teacher: tf.Tensor, mask: Any) -> tf.Tensor:
        student = tf.cast(student, tf.float64)
        if self.kind == "cosine":
            # Of rows of length 1, ‖a - b‖² / 2 = 1 - a·b, without its rounding near 0.
            tokens = tf.reduce_sum(tf.square(normalized(student) - normalized(teacher)), -1) / 2.0
        else:
            tokens = tf.reduce_mean(tf.math.squared_difference(student, teacher), axis=-1)
        batch = tf.shape(tokens)[0]
        tokens = tf.reshape(tokens, [batch, tf.reduce_prod(tf.shape(tokens)[1:])])
        counts = tf.ones_like(tokens)
        if mask is not None and student.shape.rank == 3:
            counts *= tf.cast(mask, tokens.dtype)
        total = tf.reduce_sum(tf.where(counts > 0, tokens, 0.0), axis=1)
        return tf.cast(tf.math.divide_no_nan(total, tf.reduce_sum(counts, axis=1)), tf.float32)
