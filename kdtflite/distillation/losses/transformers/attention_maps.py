"""Attention maps of transformers (arXiv 1909.10351 and 2002.10957)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import Shape
from kdtflite.distillation.losses.logits.divergence import kl
from kdtflite.distillation.losses.transformers.base import TokenLoss
from kdtflite.errors import ShapeMismatchError

__all__ = ["AttentionMaps"]


class AttentionMaps(TokenLoss):
    """Difference between which tokens attend to which.

        mse: L = mean over heads and pairs of tokens of (A_student - A_teacher)²
        kl:  L = mean over heads and tokens of KL(A_teacher ‖ A_student)

    "mse" is TinyBERT's (Jiao et al., arXiv 1909.10351, equation 7), which compares the scores
    before the softmax; Keras' MultiHeadAttention gives them after it, as its second output, tapped
    as "attention:1", and those are compared here. "kl" is MiniLM's on the last layer (Wang et al.,
    arXiv 2002.10957, equation 6) and needs maps after the softmax. Where the numbers of heads
    differ, the mean over the heads is compared. Several pairs of layers add up.

    A sample's value is the mean over its own tokens, except for those that the student masks; 0 if
    all are masked. Computed in float64.

    Args:
        student_layers: One or more layers of the student, by name, with outputs (batch, heads,
            from, to).
        teacher_layers: The teacher's, in the same order, over the same tokens.
        kind: "mse" or "kl".
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `kind` is another word.
        ShapeMismatchError: At `build`: maps of different shapes. At the first step: a mask over
            other tokens than the maps' (attention to another sequence).
    """

    default_name = "attention_maps"
    kinds = ("mse", "kl")

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        kind: str = "mse",
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, kind=kind, name=name)

    def _build(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
        for student, teacher in zip(student_shapes, teacher_shapes, strict=True):
            self._check(student, teacher)

    def __call__(
        self, student_features: Sequence[Any], teacher_features: Sequence[Any], mask: Any = None
    ) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32.

        Args:
            student_features: One tensor per layer of `student_layers`, batch first.
            teacher_features: One tensor per layer of `teacher_layers`, in the same order.
            mask: Which tokens count, shape (batch, tokens), of a sequence that attends to itself.
        """
        values = []
        for student, teacher in zip(student_features, teacher_features, strict=True):
            student, teacher = tf.cast(student, tf.float64), tf.cast(teacher, tf.float64)
            self._check(tuple(student.shape), tuple(teacher.shape))
            values.append(tf.cast(self._compare(student, teacher, mask), tf.float32))
        return tf.add_n(values)

    def _check(self, student: Shape, teacher: Shape) -> None:
        fit = len(student) == len(teacher) == 4 and all(
            s is None or t is None or s == t for s, t in zip(student[2:], teacher[2:], strict=True)
        )
        if not fit:
            raise ShapeMismatchError(
                f"{self.name}: expected attention maps (batch, heads, from, to) over the same "
                f"tokens. Received: student {student}, teacher {teacher}. Tap the second output "
                'of a MultiHeadAttention layer, as "attention:1".'
            )

    def _compare(self, student: tf.Tensor, teacher: tf.Tensor, mask: Any) -> tf.Tensor:
        if student.shape[1] is None or student.shape[1] != teacher.shape[1]:
            student = tf.reduce_mean(student, axis=1, keepdims=True)
            teacher = tf.reduce_mean(teacher, axis=1, keepdims=True)
        asking, asked = self._count_tokens(student, mask)
        if self.kind == "mse":
            pairs = tf.math.squared_difference(student, teacher)
            sums = tf.reduce_sum(tf.where(asked > 0, pairs, 0.0), axis=-1)
            rows = tf.math.divide_no_nan(sums, tf.reduce_sum(asked, axis=-1))
        else:
            rows = _compute_divergence(teacher, student)
        rows = tf.reduce_mean(rows, axis=1)
        total = tf.reduce_sum(tf.where(asking > 0, rows, 0.0), axis=1)
        return tf.math.divide_no_nan(total, tf.reduce_sum(asking, axis=1))

    def _count_tokens(self, maps: tf.Tensor, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns 1 for tokens that count, else 0: (batch, from) and (batch, 1, 1, to)."""
        if mask is None:
            first_head = tf.ones_like(maps[:, 0])
            return first_head[:, :, 0], first_head[:, None, :1, :]
        mask = tf.convert_to_tensor(mask)
        for axis in (2, 3):
            if not maps.shape[axis : axis + 1].is_compatible_with(mask.shape[1:2]):
                raise ShapeMismatchError(
                    f"{self.name}: expected maps of the masked sequence's attention to itself. "
                    f"Received: maps {tuple(maps.shape)}, mask {tuple(mask.shape)}."
                )
        counted = tf.cast(mask, maps.dtype)
        return counted, counted[:, None, None, :]


def _compute_divergence(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Returns KL(teacher ‖ student) over the last axis, of probabilities."""
    # The smallest normal float32 keeps attention that underflowed finite in log space.
    log_p, log_q = (tf.math.log(tf.maximum(maps, 1.1754944e-38)) for maps in (teacher, student))
    return kl(log_p, log_q)
