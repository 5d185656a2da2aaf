"""Matching of input gradients (arXiv 1706.04859 and 1803.00443)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.distillation.losses.gradients.fake_quant_gradients import (
    register_fake_quant_gradients,
)
from kdtflite.distillation.losses.norms import normalize
from kdtflite.distillation.losses.relations.base import flatten_rows
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError, choose

__all__ = ["JacobianMatching"]


class JacobianMatching(DistillationLoss):
    """Squared distance between the input gradients of student and teacher.

        L = ‖u(∂s/∂x) - u(∂t/∂x)‖²,  u(g) = g / ‖g‖, or g itself

    with s and t one number per sample, computed from the logits:

    - of="top": the logit of the class that the teacher finds most likely (Srinivas & Fleuret,
      arXiv 1803.00443, who divide by the norms).
    - of="projections": v·logits with v drawn anew from the unit sphere for each sample and step.
      Its expectation matches the whole Jacobians (Czarnecki et al., arXiv 1706.04859, the
      stochastic form of Sobolev training, who do not divide by the norms).

    Where a sample has several decisions (sequences, yes-or-no labels), "top" sums over them, and
    "projections" takes all logits as one vector. The loss does not constrain the logits themselves:
    combine it with one that does. A step takes one more backward pass through the teacher and two
    more through the student.

    Args:
        of: "top" or "projections".
        normalize: Divide each gradient by its L2 norm; a gradient of 0 stays 0.
        projections: Number of v per sample and step; each costs those passes again.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.

    Raises:
        ConfigurationError: `of` is another word, or there is no projection. At the first step: the
            teacher gives no gradients (a cache or a file), or the inputs have none (token ids).
        ShapeMismatchError: At the first step: the inputs of student and teacher differ in shape.
    """

    default_name = "jacobian_matching"
    default_weight = 1.0
    needs_input_gradient = True
    tasks = ("multiclass", "multilabel", "regression")

    def __init__(
        self,
        of: str = "top",
        *,
        normalize: bool = True,
        projections: int = 1,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.of = choose(of, ("top", "projections"), what="kind of Jacobian")
        if projections < 1:
            raise ConfigurationError(
                f"Expected projections of 1 or more. Received: projections={projections}."
            )
        self.normalize = bool(normalize)
        self.projections = projections
        register_fake_quant_gradients()

    @property
    def uses_randomness(self) -> bool:  # noqa: D102
        return self.of == "projections"

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        values = []
        for direction in self._choose_directions(step.teacher.logits):
            student = _compute_gradients(self.name, "student", step.student, direction)
            teacher = _compute_gradients(self.name, "teacher", step.teacher, direction)
            student, teacher = _join(self.name, student, teacher)
            if self.normalize:
                student, teacher = normalize(student), normalize(teacher)
            values.append(tf.reduce_sum(tf.square(student - teacher), axis=1))
        return tf.cast(tf.add_n(values) / len(values), tf.float32)

    def _choose_directions(self, teacher_logits: tf.Tensor) -> list[tf.Tensor]:
        """Returns the factors of the logits, each of their shape."""
        shape = tf.shape(teacher_logits)
        if self.of == "top":
            return [tf.one_hot(tf.argmax(teacher_logits, axis=-1), shape[-1])]
        # Independent normal values have no preferred direction.
        flat = [shape[0], tf.reduce_prod(shape[1:])]
        return [
            tf.reshape(normalize(tf.random.normal(flat)), shape) for _ in range(self.projections)
        ]


def _compute_gradients(name: str, role: str, observed: Observed, direction: tf.Tensor) -> list[Any]:
    """Returns the gradient of direction · logits for each input, or None where it has none."""
    if observed.input_gradient is None:
        raise ConfigurationError(
            f"{name}: the {role} gives no gradients with respect to its inputs. "
            "Expected a Keras model that runs at every step."
        )
    products = tf.cast(direction, observed.logits.dtype) * observed.logits
    values = tf.reduce_sum(products, axis=list(range(1, products.shape.rank)))
    return tf.nest.flatten(observed.input_gradient(values))


def _join(name: str, student: list[Any], teacher: list[Any]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients of all inputs, one row per sample, float64: (batch, size) each."""
    shapes = [[None if g is None else tuple(g.shape) for g in side] for side in (student, teacher)]
    fit = len(student) == len(teacher) and all(
        s is None or t is None or s.shape.is_compatible_with(t.shape)
        for s, t in zip(student, teacher, strict=True)
    )
    if not fit:
        raise ShapeMismatchError(
            f"{name}: input gradients can only be compared if student and teacher have the same "
            f"inputs. Received: student {shapes[0]}, teacher {shapes[1]}. "
            "Leave out teacher_preprocessing= that changes the shape, or leave out this loss."
        )
    # An input that one model does not use has gradient 0 there; token ids have none in either.
    pairs = [
        (tf.zeros_like(t) if s is None else s, tf.zeros_like(s) if t is None else t)
        for s, t in zip(student, teacher, strict=True)
        if s is not None or t is not None
    ]
    if not pairs:
        raise ConfigurationError(
            f"{name}: the outputs have no gradient with respect to any input. Expected inputs of "
            "real values, such as images; token ids have none."
        )
    return (
        tf.concat([flatten_rows(s) for s, _ in pairs], axis=1),
        tf.concat([flatten_rows(t) for _, t in pairs], axis=1),
    )
