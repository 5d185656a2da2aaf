"""Checks that a student, its teacher, its task and its loss fit each other."""

from __future__ import annotations

from typing import Any

from kdtflite.distillation.losses import HardLabels
from kdtflite.distillation.outputs import Outputs, Task
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.models.inspect import count_classes

__all__ = ["check_loss", "check_teacher"]


def check_teacher(
    teacher: Teacher | None, student: Any, task: Task, *, check_inputs: bool = True
) -> None:
    """Checks that `teacher` can teach `student`.

    Args:
        teacher: The teacher, or None.
        student: A tf_keras model.
        task: What the student decides.
        check_inputs: False where the student's inputs are computed from the batch.

    Raises:
        ShapeMismatchError: Different classes or inputs.
        ConfigurationError: A teacher for another task, or the student itself as the teacher.
    """
    if task == "multiclass" and count_classes(student) < 2:
        raise ShapeMismatchError(
            "A softmax over one class teaches nothing. Expected two or more classes. Received: "
            f"student output {tuple(student.output_shape)}. End the student in a linear or "
            "sigmoid unit for yes or no, or give it two outputs, one per class."
        )
    if teacher is None:
        return
    model: Any = getattr(teacher, "model", None)
    if model is student:
        raise ConfigurationError(
            f"Expected a teacher other than the student. Received: {student.name!r} as both. "
            "Pass a copy of it (keras.models.clone_model, then set_weights) as the teacher."
        )
    if check_inputs:  # a teacher whose output shape is found by a call is called here
        teacher.check_inputs(student)
    given, wanted = teacher.output_shape, tuple(student.output_shape)
    if not _fit(given, wanted):
        raise ShapeMismatchError(_describe_misfit(given, wanted, task))
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


def _fit(given: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(given) == len(wanted) and all(
        None in pair or pair[0] == pair[1] for pair in zip(given[1:], wanted[1:], strict=True)
    )


def _describe_misfit(
    given: tuple[int | None, ...], wanted: tuple[int | None, ...], task: Task
) -> str:
    received = f"Received: teacher output {given}, student output {wanted}."
    if len(given) != len(wanted):
        return (
            "The teacher and the student do not give outputs of the same kind. Expected the same "
            f"number of axes. {received} End both in one output per sample, or both in one per "
            "position."
        )
    if _fit(given[-1:] * 2, wanted[-1:] * 2):
        what = "maps of different sizes" if len(wanted) == 4 else "different numbers of positions"
        return (
            f"The teacher and the student give {what}. Expected the same sizes. {received} Resize "
            "the teacher's output (keras.layers.Resizing as its last layer), or change the "
            "student's strides."
        )
    what = {
        "multiclass": "classify into different numbers of classes",
        "multilabel": "decide on different numbers of labels",
        "regression": "give different numbers of values",
    }[task]
    return (
        f"The teacher and the student {what}. Expected the same last dimension. {received} Change "
        "the student's last layer."
    )


def check_loss(hard_labels: HardLabels, outputs: Outputs, task: Task) -> None:
    """Checks that the compiled loss suits the student's output.

    Args:
        hard_labels: The loss on the labels.
        outputs: What the student's output is.
        task: What the student decides.

    Raises:
        ConfigurationError: The loss expects logits and the student gives probabilities, or the
            reverse, or the loss is for another task.
    """
    name = hard_labels.describe()
    other = {
        "multiclass": ("binary", "pass task='multilabel' to Distiller() if it is right"),
        "multilabel": ("categorical", "use BinaryCrossentropy, or task='multiclass'"),
        "regression": ("crossentropy", "use MeanSquaredError or Huber"),
    }[task]
    if other[0] in hard_labels.function:
        raise ConfigurationError(f"The loss {name} is not for a {task} student: {other[1]}.")
    reads_logits = hard_labels.reads_logits()
    gives_logits = outputs == "logits"
    if reads_logits is not None and reads_logits != gives_logits:
        example = "BinaryCrossentropy" if task == "multilabel" else "SparseCategoricalCrossentropy"
        gives = "logits" if gives_logits else "probabilities"
        raise ConfigurationError(
            f"The student gives {gives}, but the loss {name} reads "
            f"{'logits' if reads_logits else 'probabilities'}. Pass for example "
            f"loss={example}(from_logits={gives_logits})."
        )
