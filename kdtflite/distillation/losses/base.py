"""The base classes of all distillation losses."""

from __future__ import annotations

import abc
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import tensorflow as tf

from kdtflite.arguments import ChecksArguments
from kdtflite.distillation.schedules import Schedule
from kdtflite.errors import ConfigurationError

if TYPE_CHECKING:
    from kdtflite.distillation.step import Step

__all__ = ["DistillationLoss", "FeatureLoss", "LogitsLoss", "WrappedLoss"]

Shape = tuple[int | None, ...]


class DistillationLoss(ChecksArguments, abc.ABC):
    """A loss between a student and a teacher.

    Losses return one value per sample and leave weighting and averaging to the Distiller, so that
    `sample_weight`, `class_weight` and replicas of unequal size are right by construction. A loss
    over pairs or over the whole batch gives each sample its row's share.

    Attributes:
        default_name: The word for this loss in recipes, logs and tables; by default the name of
            the class in snake_case.
        default_weight: The weight if the Distiller is given no `loss_weights`; None takes an equal
            share of what the hard labels leave.
        needs_input_gradient: Whether `compute` needs gradients with respect to the inputs.
        tasks: The tasks it is for: "multiclass", "multilabel", "regression".
        student_layers: Paths of the student's layers whose outputs `compute` reads.
        teacher_layers: Paths of the teacher's layers whose outputs `compute` reads.

    Args:
        name: Name of the term in logs and progress, `<name>_loss`; by default `default_name`.
    """

    default_name: ClassVar[str] = ""
    default_weight: ClassVar[float | None] = None
    needs_input_gradient: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")
    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()

    name: str

    def __new__(cls, *args: Any, **kwargs: Any) -> DistillationLoss:
        """Names the loss, also where its own constructor does not call this class's."""
        del args, kwargs
        made = super().__new__(cls)
        made.name = cls.default_name or _to_snake_case(cls.__name__)
        return made

    def __init__(self, *, name: str | None = None) -> None:
        if name == "":
            raise ConfigurationError(
                f"Expected a name for the loss {type(self).__name__}. Received: name=''. Leave out "
                "name=, or pass the word that logs have for the loss."
            )
        self.name = self.name if name is None else name

    def build(
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        """Creates the loss's variables, once the Distiller knows the shapes.

        Args:
            student_shapes: Shape of each of `student_layers`, batch first, None where unknown.
            teacher_shapes: Shape of each of `teacher_layers`.

        Raises:
            ShapeMismatchError: The loss cannot compare these shapes.
        """

    @property
    def variables(self) -> list[tf.Variable]:
        """All variables of the loss; a training is resumed with them."""
        return []

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """The variables trained with the student (adapters), which its file does not hold."""
        return []

    @property
    def schedules(self) -> list[Schedule]:
        """The schedules among the loss's parameters, which `fit` advances every epoch."""
        return [value for value in vars(self).values() if isinstance(value, Schedule)]

    @property
    def uses_randomness(self) -> bool:
        """Whether `compute` draws random numbers, which a resumed training has to repeat."""
        return False

    @abc.abstractmethod
    def compute(self, step: Step) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            step: The outputs of student and teacher for one batch.

        Returns:
            Shape (batch,), float32, or (batch, positions) where each position has its own value.
        """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DistillationLoss:
        """Returns a loss with the arguments that `get_config` returned."""
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments with which `type(self)(**config)` makes the same loss.

        They are the attributes that have the names of the arguments of `__init__`.
        """
        names = [*inspect.signature(type(self)).parameters, "name"]
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


class LogitsLoss(DistillationLoss):
    """A loss between the student's and the teacher's logits alone."""

    @abc.abstractmethod
    def __call__(self, student_logits: Any, teacher_logits: Any) -> tf.Tensor:
        """Returns the loss of each sample.

        Args:
            student_logits: Shape (batch, classes) or (batch, ..., classes), any float dtype.
            teacher_logits: The same shape, any float dtype.

        Returns:
            The shape of the logits without the last axis, float32: mostly (batch,).
        """

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(step.student.logits, step.teacher.logits)


class WrappedLoss(DistillationLoss):
    """The base of the losses that compute another loss on something else.

    Attributes:
        loss: The other loss, whose variables and schedules this one has.
    """

    loss: DistillationLoss

    def build(  # noqa: D102
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        self.loss.build(student_shapes, teacher_shapes)

    @property
    def variables(self) -> list[tf.Variable]:  # noqa: D102
        return self.loss.variables

    @property
    def trainable_variables(self) -> list[tf.Variable]:  # noqa: D102
        return self.loss.trainable_variables

    @property
    def schedules(self) -> list[Schedule]:  # noqa: D102
        return [*super().schedules, *self.loss.schedules]


class FeatureLoss(DistillationLoss):
    """A loss between layers of the student and as many layers of the teacher.

    Args:
        student_layers: One or more layers of the student, by name. "outer/inner" is a layer
            inside a nested model; "name:1" is the second output of a layer with several. A layer
            that `quantize_aware` wrapped keeps its old name.
        teacher_layers: As many layers of the teacher, in the same order.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: There is no layer, or the two lists differ in length.
    """

    default_weight = 1.0
    tasks = ("multiclass", "multilabel", "regression")

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.student_layers = _as_tuple(student_layers)
        self.teacher_layers = _as_tuple(teacher_layers)
        if len(self.student_layers) != len(self.teacher_layers) or not self.student_layers:
            raise ConfigurationError(
                f"{self.name}: expected one layer of the teacher for each of the student, at least "
                f"one. Received: student_layers={list(self.student_layers)}, "
                f"teacher_layers={list(self.teacher_layers)}."
            )

    def build(  # noqa: D102
        self, student_shapes: Mapping[str, Shape], teacher_shapes: Mapping[str, Shape]
    ) -> None:
        self._build(
            [tuple(student_shapes[path]) for path in self.student_layers],
            [tuple(teacher_shapes[path]) for path in self.teacher_layers],
        )

    def _build(self, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
        """Creates the loss's variables from the layers' shapes, in the order of the layers."""

    @abc.abstractmethod
    def __call__(
        self, student_features: Sequence[Any], teacher_features: Sequence[Any]
    ) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32.

        Args:
            student_features: One tensor per layer of `student_layers`, batch first.
            teacher_features: One tensor per layer of `teacher_layers`, in the same order.
        """

    def compute(self, step: Step) -> tf.Tensor:  # noqa: D102
        return self(*self._list_features(step))

    def _list_features(self, step: Step) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        return (
            [step.student.features[path] for path in self.student_layers],
            [step.teacher.features[path] for path in self.teacher_layers],
        )


def _to_snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower().strip("_")


def _as_tuple(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
