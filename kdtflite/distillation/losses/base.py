"""What every distillation loss is: what a step saw in, one value a sample out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import tensorflow as tf

from kdtflite.distillation.schedules import Schedule
from kdtflite.errors import ConfigurationError

if TYPE_CHECKING:
    from kdtflite.distillation.step import Step

__all__ = ["DistillationLoss", "FeatureLoss", "LogitsLoss"]

Shape = tuple[int | None, ...]


class DistillationLoss(abc.ABC):
    """A loss between a student and a teacher.

    Losses return one value a sample and leave weighting and averaging to the Distiller, so that
    `sample_weight`, `class_weight` and replicas of unequal size are right by construction. A loss
    over pairs or over the whole batch gives each sample its row's share.

    Attributes:
        default_weight: Weight where the Distiller is given no `loss_weights`; None takes an equal
            part of what the hard labels leave.
        needs_input_gradient: Whether `of_step` asks for gradients by the inputs.
        tasks: What the models may do: "multiclass", "multilabel", "regression".

    Args:
        name: Name of the term in logs and progress: `<name>_loss`.
    """

    default_weight: ClassVar[float | None] = None
    needs_input_gradient: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")

    def __init__(self, *, name: str) -> None:
        if not name:
            raise ConfigurationError("A loss needs a name. Received: name=''.")
        self.name = name

    @property
    def student_layers(self) -> tuple[str, ...]:
        """Paths of the student's layers whose outputs `of_step` reads."""
        return ()

    @property
    def teacher_layers(self) -> tuple[str, ...]:
        """Paths of the teacher's layers whose outputs `of_step` reads."""
        return ()

    def build(  # noqa: B027
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        """Makes what the loss trains or remembers, once the Distiller knows the shapes.

        Args:
            student_shapes: Shape of each of `student_layers`, batch first, None where open.
            teacher_shapes: Shape of each of `teacher_layers`.

        Raises:
            ShapeMismatchError: Shapes that the loss cannot join.
        """

    @property
    def variables(self) -> list[tf.Variable]:
        """Everything the loss trains or remembers; resuming a training needs them."""
        return []

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """What is trained with the student (adapters); it is no part of the student's file."""
        return []

    @property
    def schedules(self) -> list[Schedule]:
        """The schedules among the loss's parameters, which `fit` moves on every epoch."""
        return [value for value in vars(self).values() if isinstance(value, Schedule)]

    @property
    def draws(self) -> bool:
        """Whether `of_step` draws random numbers, which a resumed training has to draw again."""
        return False

    @abc.abstractmethod
    def of_step(self, step: Step) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            step: What the student and the teacher gave for one batch.

        Returns:
            Shape (batch,), float32, or (batch, positions) where every position has its own.
        """

    def get_config(self) -> dict[str, Any]:
        """Returns what `type(self)(**config)` takes to make the same loss."""
        return {"name": self.name}


class LogitsLoss(DistillationLoss):
    """A loss between the student's and the teacher's logits alone."""

    @abc.abstractmethod
    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.

        Returns:
            The shape of the logits without the classes, float32: (batch,) for most.
        """

    def of_step(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(step.student.logits, step.teacher.logits)


class FeatureLoss(DistillationLoss):
    """A loss between the outputs of layers, one of the student for each of the teacher.

    Args:
        student_layers: Name of a layer of the student, or several. "outer/inner" is a layer
            inside a nested model; "name:1" the second output of a layer with several. A layer
            that `quantize_aware` wrapped answers to its old name.
        teacher_layers: The teacher's, in the same order, as many.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: No layer, or not one of the teacher for each of the student.
    """

    default_weight = 1.0
    tasks = ("multiclass", "multilabel", "regression")

    def __init__(
        self, student_layers: str | Sequence[str], teacher_layers: str | Sequence[str], *, name: str
    ) -> None:
        super().__init__(name=name)
        self._student_layers = _paths(student_layers)
        self._teacher_layers = _paths(teacher_layers)
        if len(self._student_layers) != len(self._teacher_layers) or not self._student_layers:
            raise ConfigurationError(
                f"{name}: expected one layer of the teacher for each of the student, at least one. "
                f"Received: student_layers={list(self._student_layers)}, "
                f"teacher_layers={list(self._teacher_layers)}."
            )

    @property
    def student_layers(self) -> tuple[str, ...]:  # noqa: D102
        return self._student_layers

    @property
    def teacher_layers(self) -> tuple[str, ...]:  # noqa: D102
        return self._teacher_layers

    @abc.abstractmethod
    def __call__(
        self, student_features: Sequence[Any], teacher_features: Sequence[Any]
    ) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32.

        Args:
            student_features: A tensor for each of `student_layers`, batch first.
            teacher_features: A tensor for each of `teacher_layers`, in the same order.
        """

    def of_step(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(
            [step.student.features[path] for path in self._student_layers],
            [step.teacher.features[path] for path in self._teacher_layers],
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {
            "student_layers": list(self._student_layers),
            "teacher_layers": list(self._teacher_layers),
            **super().get_config(),
        }


def _paths(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
