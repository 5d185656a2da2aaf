"""What every distillation loss is: two batches of logits in, one value a sample out."""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf

from kdtflite.errors import ConfigurationError

__all__ = ["DistillationLoss"]


class DistillationLoss(abc.ABC):
    """A loss between the student's and the teacher's logits.

    Losses return one value a sample and leave weighting and averaging to the Distiller, so that
    `sample_weight`, `class_weight` and replicas of unequal size are right by construction.

    Args:
        name: Name of the term in logs and progress: `<name>_loss`.
    """

    def __init__(self, *, name: str) -> None:
        if not name:
            raise ConfigurationError("A loss needs a name. Received: name=''.")
        self.name = name

    @abc.abstractmethod
    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes), any float dtype.
            teacher_logits: Shape (batch, classes), any float dtype.

        Returns:
            Shape (batch,), float32.
        """

    def get_config(self) -> dict[str, Any]:
        """Returns what `type(self)(**config)` takes to make the same loss."""
        return {"name": self.name}
