"""The base of the losses between layers of transformers."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf

from kdtflite.distillation.losses.base import FeatureLoss
from kdtflite.distillation.step import Step
from kdtflite.errors import choose

__all__ = ["TokenLoss"]


class TokenLoss(FeatureLoss):
    """A loss of several kinds over the tokens of sequences, without those that are masked.

    Attributes:
        kinds: The kinds there are.
    """

    kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        kind: str,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        self.kind = choose(kind, self.kinds, what=f"kind of {self.default_name}")

    @abc.abstractmethod
    def __call__(
        self, student_features: Sequence[Any], teacher_features: Sequence[Any], mask: Any = None
    ) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32.

        Args:
            student_features: One tensor per layer of `student_layers`, batch first.
            teacher_features: One tensor per layer of `teacher_layers`, in the same order.
            mask: Which tokens count, shape (batch, tokens).
        """

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(*self._list_features(step), step.student.mask)
