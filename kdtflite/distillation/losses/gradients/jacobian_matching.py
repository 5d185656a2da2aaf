"""Matching of gradients by the inputs (arXiv 1706.04859 and 1803.00443)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.distillation.losses.gradients.fake_quant_gradients import (
    register_fake_quant_gradients,
)
from kdtflite.distillation.losses.norms import normalized
from kdtflite.distillation.losses.relations.base import flat_rows
from kdtflite.distillation.step import Observed, Step
from kdtflite.errors import ConfigurationError, ShapeMismatchError, choose

__all__ = ["JacobianMatching"]


class JacobianMatching(DistillationLoss):
    """Squared distance between the gradients of student and teacher by the inputs.

        L = ‖u(∂s/∂x) - u(∂t/∂x)‖²,  u(g) = g / ‖g‖, or g itself

    with s and t one number a sample, made of the logits:

    - of="top": the logit of the class that the teacher finds most likely (Srinivas & Fleuret,
      arXiv 1803.00443, who divide by the norms).
    - of="projections": v·logits with v drawn anew for each sample and step from the unit sphere.
      Its expectation matches the whole Jacobians (Czarnecki et al., arXiv 1706.04859, the
      stochastic form of Sobolev training, who do not divide by the norms).

    Of several decisions a sample (sequences, yes-or-no labels) "top" takes the sum over them, and
    "projections" all logits as one vector. The loss says nothing about the logits themselves: pass
    one that does beside it. A step takes one more backward pass through the teacher and two more
    through the student.

    Args:
        of: "top" or "projections".
        normalize: Divide each gradient by its L2 norm; a gradient of 0 stays 0.
        projections: How many v a sample and step; each costs those passes once more.
        name: Name of the term in logs.

    Returns:
        One value a sample, shape (batch,), float32.

    Raises:
        ConfigurationError: Another `of`, or no projection. At the first step: a teacher without
            gradients (outputs cached, or from a file), or inputs that have none, as token ids.
        ShapeMismatchError: At the first step: inputs of student and teacher of different shapes.
    """

    default_weight = 1.0
    needs_input_gradient = True
    tasks = ("multiclass", "multilabel", "regression")

    def __init__(
        self,
        of: str = "top",
        *,
        normalize: bool = True,
        projections: int = 1,
        name: str = "jacobian_matching",
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
    def draws(self) -> bool:  # noqa: D102
        return self.of == "projections"

    def of_step(self, step: Step) -> tf.Tensor:  # noqa: D102
        values = []
        for direction in self._directions(step.teacher.logits):
            student = _gradients(self.name, "student", step.student, direction)
            teacher = _gradients(self.name, "teacher", step.teacher, direction)
            student, teacher = _joined(self.name, student, teacher)
            if self.normalize:
                student, teacher = normalized(student), normalized(teacher)
            values.append(tf.reduce_sum(tf.square(student - teacher), axis=1))
        return tf.cast(tf.add_n(values) / len(values), tf.float32)

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {
            "of": self.of,
            "normalize": self.normalize,
            "projections": self.projections,
            **super().get_config(),
        }

    def _directions(self, teacher_logits: tf.Tensor) -> list[tf.Tensor]:
        """Returns what the logits are multiplied by, each of the logits' shape."""
        shape = tf.shape(teacher_logits)
        if self.of == "top":
            return [tf.one_hot(tf.argmax(teacher_logits, axis=-1), shape[-1])]
        # Independent normal values have no preferred direction.
        flat = [shape[0], tf.reduce_prod(shape[1:])]
        return [
            tf.reshape(normalized(tf.random.normal(flat)), shape) for _ in range(self.projections)
        ]


def _gradients(name: str, role: str, observed: Observed, direction: tf.Tensor) -> list[Any]:
    """Returns the gradient of direction · logits by each input; None where there is none."""
    if observed.input_gradient is None:
        raise ConfigurationError(
            f"{name}: the {role} gives no gradients by its inputs. "
            "Expected a Keras model that runs at every step."
        )
    products = tf.cast(direction, observed.logits.dtype) * observed.logits
    values = tf.reduce_sum(products, axis=list(range(1, products.shape.rank)))
    return tf.nest.flatten(observed.input_gradient(values))


def _joined(name: str, student: list[Any], teacher: list[Any]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients by all inputs, one row a sample, float64: (batch, size) each."""
    shapes = [[None if g is None else tuple(g.shape) for g in side] for side in (student, teacher)]
    fit = len(student) == len(teacher) and all(
        s is None or t is None or s.shape.is_compatible_with(t.shape)
        for s, t in zip(student, teacher, strict=True)
    )
    if not fit:
        raise ShapeMismatchError(
            f"{name}: gradients by inputs can be compared only where student and teacher have the "
            f"same inputs. Received: student {shapes[0]}, teacher {shapes[1]}. "
            "Leave out teacher_preprocessing that changes the shape, or this loss."
        )
    # An input that one model does not use has gradient 0 there; token ids have none in both.
    pairs = [
        (tf.zeros_like(t) if s is None else s, tf.zeros_like(s) if t is None else t)
        for s, t in zip(student, teacher, strict=True)
        if s is not None or t is not None
    ]
    if not pairs:
        raise ConfigurationError(
            f"{name}: the outputs have no gradient by any of the inputs. Expected inputs of real "
            "values, as images; token ids have none."
        )
    return (
        tf.concat([flat_rows(s) for s, _ in pairs], axis=1),
        tf.concat([flat_rows(t) for _, t in pairs], axis=1),
    )
