"""Distillation of regression: towards the teacher, or bounded by its error (Chen et al., 2017)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import tensorflow as tf

from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.losses.checks import check_not_negative
from kdtflite.distillation.step import Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError, choose

__all__ = ["RegressionDistillation", "TeacherBoundedRegression"]


class _Regression(LogitsLoss):
    """The base of both: an error between two outputs, averaged over their last axis."""

    tasks: ClassVar[tuple[str, ...]] = ("regression",)

    def __init__(self, *, kind: str = "mse", delta: float = 1.0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.kind = choose(kind, ("huber", "mse"), what="kind of regression error")
        if not (math.isfinite(delta) and delta > 0):
            raise ConfigurationError(f"Expected a positive, finite delta. Received: delta={delta}.")
        self.delta = float(delta)

    def _measure(self, output: Any, wanted: Any) -> tf.Tensor:
        difference = tf.cast(output, tf.float64) - tf.cast(wanted, tf.float64)
        if self.kind == "mse":
            return tf.reduce_mean(difference**2, axis=-1)
        size = tf.abs(difference)
        near = tf.minimum(size, self.delta)  # a minimum has a gradient on both sides, and no 0/0
        return tf.reduce_mean(near * (size - near / 2), axis=-1)


class RegressionDistillation(_Regression):
    """Error of the student's outputs against the teacher's, as if these were the labels.

        mse:    L = mean over outputs of e², e = student - teacher
        huber:  L = mean over outputs of e² / 2 where |e| ≤ δ, else δ · (|e| - δ / 2)

    A teacher's outputs are less noisy than labels and exist where labels are missing, but the
    student inherits the teacher's errors (not so with `TeacherBoundedRegression`).

    Args:
        kind: "mse", or "huber", which outliers affect less.
        delta: δ of huber, in the outputs' units.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `kind` is another word, or `delta` is not positive.
    """

    default_name = "regression_distillation"

    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:  # noqa: D102
        return tf.cast(self._measure(student_logits, teacher_logits), tf.float32)


class TeacherBoundedRegression(_Regression):
    """Error of the student against the labels, unless it is below the teacher's.

        L = e_s where e_s + m > e_t, else 0

    with e_s and e_t the errors of student and teacher against the labels, each a mean over the
    outputs of squares ("mse") or of Huber's error. A regression's teacher may point the wrong
    way, so it is not a target; it says what is good enough. Chen et al., "Learning Efficient Object
    Detection Models with Knowledge Distillation", NeurIPS 2017, section 3.3, which adds half of
    it to an ordinary loss on the labels.

    Args:
        kind: "mse" (the paper's) or "huber".
        margin: m, not negative: by how much the student's error must be below the teacher's.
        delta: δ of huber, in the outputs' units.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: `kind` is another word, `margin` is negative, or `delta` is not
            positive.
    """

    default_name = "teacher_bounded_regression"

    def __init__(
        self,
        *,
        kind: str = "mse",
        margin: float = 0.0,
        delta: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(kind=kind, delta=delta, name=name)
        self.margin = check_not_negative("margin", margin)

    def __call__(self, student_logits: Any, teacher_logits: Any, labels: Any = None) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: The student's outputs, shape (batch, outputs) or (batch, ..., outputs).
            teacher_logits: The teacher's, the same shape.
            labels: The same shape; or without the last axis where there is one output.

        Returns:
            The shape of the outputs without the last axis, float32.

        Raises:
            ConfigurationError: There are no labels.
            ShapeMismatchError: Labels of another shape.
        """
        if labels is None:
            raise ConfigurationError(
                f"{self.name}: expected labels, to measure the teacher's error. Received: "
                "labels=None. Train on labeled data, or use RegressionDistillation."
            )
        labels = _match_shape(labels, tf.convert_to_tensor(student_logits).shape)
        student = self._measure(student_logits, labels)
        teacher = self._measure(teacher_logits, labels)
        behind = student + self.margin > teacher
        return tf.cast(tf.where(behind, student, tf.zeros_like(student)), tf.float32)

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(step.student.logits, step.teacher.logits, step.labels)


def _match_shape(labels: Any, shape: tf.TensorShape) -> tf.Tensor:
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == len(shape) - 1 and shape[-1] == 1:
        labels = labels[..., tf.newaxis]
    # Another shape would broadcast, and be compared with the wrong labels.
    if not labels.shape.is_compatible_with(shape):
        raise ShapeMismatchError(
            f"Expected labels of the outputs' shape {tuple(shape)}. Received: labels of shape "
            f"{tuple(labels.shape)}."
        )
    return labels
