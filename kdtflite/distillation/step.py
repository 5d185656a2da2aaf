"""What a training step observes: one forward pass of the student and one of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

__all__ = ["CachedBatch", "Observed", "Step"]


@dataclass(frozen=True)
class Observed:
    """What one model returned in one forward pass.

    Attributes:
        logits: Shape (batch, classes); (batch, positions, classes) for sequences;
            (batch, labels, 2) for yes-or-no labels, as logits of no and yes; raw values for
            regression.
        features: Tensors of the tapped layers by path, batch first.
        input_gradient: Turns values computed from `logits`, shape (batch,), into their
            gradients with respect to the model's inputs, in the inputs' structure and shapes;
            None where no loss needs it.
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
        student: The student's forward pass, with training=True.
        teacher: The teacher's, with training=False; no gradient flows into it.
        labels: The true labels as `fit` was given them, or None.
        counted: Which decisions count, bool, the shape of the logits without the last axis: those
            that no layer masks and that the hard-label loss does not ignore; by default the
            student's mask. None for all.
    """

    student: Observed
    teacher: Observed
    labels: Any = None
    counted: tf.Tensor | None = None

    def __post_init__(self) -> None:
        if self.counted is None:
            object.__setattr__(self, "counted", self.student.mask)


class CachedBatch(NamedTuple):
    """A batch's inputs together with the teacher's stored outputs for them.

    Batches of a `TeacherCache` hold it in place of x.

    Attributes:
        inputs: The student's inputs.
        logits: The teacher's logits.
        features: Outputs of the teacher's tapped layers by path.
    """

    inputs: Any
    logits: Any
    features: Mapping[str, Any]
