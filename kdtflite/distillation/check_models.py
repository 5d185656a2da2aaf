"""Whether a student, its teacher, its task and its loss go together."""

from __future__ import annotations

from typing import Any

from kdtflite.distillation.losses import HardLabels
from kdtflite.distillation.mixing import Mixing
from kdtflite.distillation.outputs import Outputs, Task
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.models.inspect import number_of_classes

__all__ = ["check_loss", "check_mixing", "check_models"]


def check_models(teacher: Teacher | None, student: Any, task: Task, *, own_inputs: bool) -> None:
    """Checks that `teacher` can teach `student`.

    Args:
        teacher: The teacher, or None.
        student: A tf_keras model.
        task: What the student decides.
        own_inputs: Whether the student takes batches as they come.

    Raises:
        ShapeMismatchError: Other classes or inputs.
        ConfigurationError: A teacher of another task, or the student itself.
    """
    if task == "multiclass" and number_of_classes(student) < 2:
        raise ShapeMismatchError(
            "A softmax over one class teaches nothing. Expected two or more classes. Received: "
            f"student output {tuple(student.output_shape)}. End the student in a linear or "
            "sigmoid unit for yes or no, or give it two outputs, one a class."
        )
    if teacher is None:
        return
    model: Any = getattr(teacher, "model", None)
    if model is student:
        raise ConfigurationError(
            f"Expected a teacher other than the student. Received: {student.name!r} as both. "
            "Pass a copy of it (keras.models.clone_model, then set_weights) as the teacher."
        )
    if own_inputs:  # a teacher whose outputs are learnt by a probe is probed here
        teacher.check_inputs(student)
    given, wanted = teacher.output_shape, tuple(student.output_shape)
    if len(given) != len(wanted) or any(
        None not in pair and pair[0] != pair[1] for pair in zip(given[1:], wanted[1:], strict=True)
    ):
        what = {
            "multiclass": "classify into different numbers of classes",
            "multilabel": "decide on different numbers of labels",
            "regression": "give different numbers of values",
        }[task]
        raise ShapeMismatchError(
            f"The teacher and the student {what}. "
            f"Expected the same last dimension{'s' if len(wanted) > 2 else ''}. Received: teacher "
            f"output {given}, student output {wanted}. Change the student's last layer."
        )
    kinds = {
        "multiclass": ("logits", "probabilities"),
        "multilabel": ("logits", "sigmoid"),
        "regression": ("logits", "values"),
    }[task]
    if teacher.outputs not in kinds:
        raise ConfigurationError(
            f"A {task} student cannot learn from a teacher that gives {teacher.outputs}. Expected "
            f"teacher_outputs to be one of: {', '.join(kinds)}. Pass task= if the student is of "
            "another kind, or end both models alike."
        )


def check_mixing(mixing: Any) -> Mixing | None:
    """Returns `mixing`.

    Raises:
        ConfigurationError: It is none of ours.
    """
    if not isinstance(mixing, Mixing | None):
        raise ConfigurationError(
            "Expected mixing to be a MixUp or CutMix of kdtflite.distillation, for example "
            f"MixUp(alpha=0.2). Received: {mixing!r}."
        )
    return mixing


def check_loss(hard_labels: HardLabels, outputs: Outputs, task: Task) -> None:
    """Checks that the compiled loss reads what the student gives.

    Raises:
        ConfigurationError: It reads logits where there are probabilities, or the other way
            round, or it is the loss of another task.
    """
    kind = type(hard_labels.loss).__name__
    named = kind if kind != "function" else hard_labels.loss.__name__
    other = {
        "multiclass": ("binary", "pass task='multilabel' to Distiller() if it is right"),
        "multilabel": ("categorical", "use BinaryCrossentropy, or task='multiclass'"),
        "regression": ("crossentropy", "use MeanSquaredError or Huber"),
    }[task]
    if other[0] in hard_labels.function:
        raise ConfigurationError(f"The loss {named} is not one of a {task} student: {other[1]}.")
    reads_logits = hard_labels.reads_logits()
    gives_logits = outputs == "logits"
    if reads_logits is not None and reads_logits != gives_logits:
        example = "BinaryCrossentropy" if task == "multilabel" else "SparseCategoricalCrossentropy"
        gives = "logits" if gives_logits else "probabilities"
        raise ConfigurationError(
            f"The student gives {gives}, but the loss {named} reads "
            f"{'logits' if reads_logits else 'probabilities'}. Pass for example "
            f"loss={example}(from_logits={gives_logits})."
        )
