"""What a training step saw: one forward pass of the student and one of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

__all__ = ["Observed", "Step", "Taught"]


@dataclass(frozen=True)
class Observed:
    """What one model gave in one forward pass.

    Attributes:
        logits: Shape (batch, classes); (batch, positions, classes) for sequences;
            (batch, labels, 2) for yes-or-no labels, as logits of no and yes; raw values for
            regression.
        features: Tensors of the tapped layers by path, batch first.
        input_gradient: Turns values computed from `logits`, shape (batch,), into their
            gradients by the model's inputs, in the inputs' structure and shapes; None where no
            loss asked for it.
        mask: Which positions of a sequence count, shape (batch, positions), bool; None for all.
    """

    logits: tf.Tensor
    features: Mapping[str, tf.Tensor] = field(default_factory=dict)
    input_gradient: Callable[[tf.Tensor], Any] | None = None
    mask: tf.Tensor | None = None


@dataclass(frozen=True)
class Step:
    """What the losses of one training step are computed from.

    Attributes:
        student: The student's pass, with training=True.
        teacher: The teacher's, with training=False; no gradient flows into it.
        labels: The true labels as `fit` was given them, or None.
    """

    student: Observed
    teacher: Observed
    labels: Any = None


class Taught(NamedTuple):
    """A batch's inputs together with what a teacher once gave for them.

    Batches of a `TeacherCache` hold it in place of x.

    Attributes:
        inputs: What the student is given.
        logits: The teacher's logits.
        features: Outputs of the teacher's tapped layers by path.
    """

    inputs: Any
    logits: Any
    features: Mapping[str, Any]
