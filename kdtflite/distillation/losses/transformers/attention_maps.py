"""Attention maps of transformers (arXiv 1909.10351 and 2002.10957)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import FeatureLoss, Shape
from kdtflite.distillation.losses.logits.divergence import kl
from kdtflite.distillation.step import Step
from kdtflite.errors import ShapeMismatchError, choose

__all__ = ["AttentionMaps"]


class AttentionMaps(FeatureLoss):
    """Difference between which tokens attend to which.

        mse: L = mean over heads and pairs of tokens of (A_student - A_teacher)²
        kl:  L = mean over heads and tokens of KL(A_teacher ‖ A_student)

    "mse" is TinyBERT's (Jiao et al., arXiv 1909.10351, equation 7), which compares the scores
    before the softmax; Keras' MultiHeadAttention gives them after it, as its second output, tapped
    as "attention:1", and those are compared here. "kl" is MiniLM's on the last layer (Wang et al.,
    arXiv 2002.10957, equation 6) and needs maps after the softmax. Where the numbers of heads
    differ, the mean over the heads is compared. Several pairs of layers add up.

    A sample's value is the mean over its own tokens, without those that the student masks: 0 if
    it masks all. Computed in float64.

    Args:
        student_layers: Name of a layer of the student, or several, of outputs (batch, heads,
            from, to).
        teacher_layers: The teacher's, in the same order, over the same tokens.
        kind: "mse" or "kl".
        name: Name of the term in logs.

    Returns:
        One value a sample, shape (batch,), float32.

    Raises:
        ConfigurationError: Another `kind`.
        ShapeMismatchError: Maps of other shapes, at `build`; a mask of other tokens than the maps'
            (attention to another sequence), at the first step.
    """

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        kind: str = "mse",
        name: str = "attention_maps",
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        self.kind = choose(kind, ("mse", "kl"), what="kind of attention loss")

    def build(  # noqa: D102
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        for student, teacher in zip(self.student_layers, self.teacher_layers, strict=True):
            self._check(tuple(student_shapes[student]), tuple(teacher_shapes[teacher]))

    def __call__(
        self, student_features: Sequence[Any], teacher_features: Sequence[Any], mask: Any = None
    ) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32.

        Args:
            student_features: A tensor for each of `student_layers`, batch first.
            teacher_features: A tensor for each of `teacher_layers`, in the same order.
            mask: Which tokens count, shape (batch, tokens), of a sequence that attends to itself.
        """
        values = []
        for student, teacher in zip(student_features, teacher_features, strict=True):
            student, teacher = tf.cast(student, tf.float64), tf.cast(teacher, tf.float64)
            self._check(tuple(student.shape), tuple(teacher.shape))
            values.append(tf.cast(self._of_pair(student, teacher, mask), tf.float32))
        return tf.add_n(values)

    def of_step(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(
            [step.student.features[path] for path in self.student_layers],
            [step.teacher.features[path] for path in self.teacher_layers],
            step.student.mask,
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {"kind": self.kind, **super().get_config()}

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

    def _of_pair(self, student: tf.Tensor, teacher: tf.Tensor, mask: Any) -> tf.Tensor:
        if student.shape[1] is None or student.shape[1] != teacher.shape[1]:
            student = tf.reduce_mean(student, axis=1, keepdims=True)
            teacher = tf.reduce_mean(teacher, axis=1, keepdims=True)
        asking, asked = self._counted(student, mask)
        if self.kind == "mse":
            pairs = tf.math.squared_difference(student, teacher)
            sums = tf.reduce_sum(tf.where(asked > 0, pairs, 0.0), axis=-1)
            rows = tf.math.divide_no_nan(sums, tf.reduce_sum(asked, axis=-1))
        else:
            rows = _divergence(teacher, student)
        rows = tf.reduce_mean(rows, axis=1)
        total = tf.reduce_sum(tf.where(asking > 0, rows, 0.0), axis=1)
        return tf.math.divide_no_nan(total, tf.reduce_sum(asking, axis=1))

    def _counted(self, maps: tf.Tensor, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns 1 for the tokens that count: (batch, from) and (batch, 1, 1, to)."""
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


def _divergence(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Returns KL(teacher ‖ student) over the last axis, of probabilities."""
    # The smallest normal float32: attention that underflowed stays finite in log space.
    log_p, log_q = (tf.math.log(tf.maximum(maps, 1.1754944e-38)) for maps in (teacher, student))
    return kl(log_p, log_q)
