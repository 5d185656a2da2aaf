"""Students with several outputs, one teacher a task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.check_models import check_models
from kdtflite.distillation.losses import DistillationLoss, SoftTargets
from kdtflite.distillation.losses.state import LossState
from kdtflite.distillation.objective import Objective
from kdtflite.distillation.outputs import as_classes, resolve_outputs, resolve_task
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.step import Observed
from kdtflite.distillation.taps import TappedModel
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.joint import JointDistiller, Part
from kdtflite.errors import ConfigurationError, UnsupportedModelError, choose
from kdtflite.models.as_tf_keras import as_tf_keras

__all__ = ["MultiTaskDistiller"]


class MultiTaskDistiller(JointDistiller):
    """Trains one student with several outputs, each from the labels and the teacher of its task.

        L = Σ_t v_t · (w_t · L_hard(y_t, student_t(x)) + Σᵢ wᵢ · Lᵢ(student_t(x), teacher_t(x)))

    Experts of single tasks teach a network that does them all (cross-task distillation as in
    Li & Bilen, "Knowledge Distillation for Multi-task Learning", arXiv 2007.06889). The student
    runs once a step, and each teacher once.

    Compile, fit, evaluate and predict as any Keras model: `y` and, if there is one for each
    output, `sample_weight` are dicts by output, or lists in the outputs' order; metrics go by
    the outputs' names.

    Args:
        student: A model with several outputs that have names of their own.
        teachers: What `Distiller` takes as a teacher, by output. An output without one learns
            from its labels alone.
        losses: Distillation losses by output; by default `SoftTargets(temperature=4.0)` (for
            regression there is no default).
        weights: v_t by output, numbers or schedules; by default 1.
        hard_label_weights: w_t by output, as `Distiller` takes hard_label_weight.
        tasks: By output "multiclass", "multilabel" or "regression", where the last layer does not
            show it.
        teacher_preprocessing: By output, turns batches into that teacher's inputs.
        name: Name of this model.

    Raises:
        ConfigurationError: An output that there is not, or losses that make no sense for it.
        ShapeMismatchError: A teacher that does not fit its output.
        UnsupportedModelError: A student whose outputs cannot be seen.

    Example:
        >>> distiller = MultiTaskDistiller(student, {"digit": reader, "writer": forger})
        >>> distiller.compile("adam", {"digit": cross_entropy, "writer": cross_entropy})
        >>> distiller.fit(x, {"digit": digits, "writer": writers})
    """

    def __init__(
        self,
        student: Any,
        teachers: Mapping[str, Any],
        *,
        losses: Mapping[str, Sequence[DistillationLoss]] | None = None,
        weights: Mapping[str, float | Schedule] | None = None,
        hard_label_weights: Mapping[str, float | Schedule] | None = None,
        tasks: Mapping[str, str] | None = None,
        teacher_preprocessing: Mapping[str, Callable[[Any], Any]] | None = None,
        name: str = "multi_task_distiller",
    ) -> None:
        student = as_tf_keras(student)
        heads = _heads(student)
        options = {
            "teachers": teachers,
            "losses": losses or {},
            "weights": weights or {},
            "hard_label_weights": hard_label_weights or {},
            "tasks": tasks or {},
            "teacher_preprocessing": teacher_preprocessing or {},
        }
        for option, by_output in options.items():
            for output in by_output:
                choose(output, heads, what=f"output (a key of {option}=)")
        held: dict[str, Teacher] = {}
        parts: dict[str, Part] = {}
        for output, head in heads.items():
            given = {option: values.get(output) for option, values in options.items()}
            if given["teachers"] is not None:
                held[output] = as_teacher(
                    given["teachers"], preprocessing=given["teacher_preprocessing"]
                )
            parts[output] = _part(output, head, held.get(output), given)
        super().__init__(parts, [student], name=name)
        self.student = student
        layers = [path for part in parts.values() for path in part.objective.student_layers]
        self._tapped = TappedModel(student, layers, role="student")
        for output, teacher in held.items():
            objective = parts[output].objective
            held[output] = own = copy.copy(teacher)  # others may tap other layers of the same
            objective.build(self._tapped.shapes, own.tap(objective.teacher_layers))
        self._held = _Held(held)
        # Checkpoints of this model keep what the losses train; the student's own files do not.
        self._loss_state = LossState(self.loss_variables)

    def observe(self, x: Any, *, training: bool) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: D102
        outputs, features = self._tapped(x, training=training)
        return dict(zip(self._parts.by_name, tf.nest.flatten(outputs), strict=True)), features

    def taught(self, x: Any, logits: Mapping[str, tf.Tensor]) -> dict[str, Observed]:  # noqa: D102
        shown = {}
        for output, part in self._parts.by_name.items():
            teacher = self._held.teachers.get(output)
            if teacher is None or not part.objective.losses:
                shown[output] = Observed(logits[output])  # no loss looks at it
                continue
            seen = teacher.observe(x)
            shown[output] = Observed(as_classes(seen.logits, part.task), seen.features)
        return shown

    def labels_of(self, y: Any, name: str) -> Any:  # noqa: D102
        return self._of_output(y, name)

    def weights_of(self, sample_weight: Any, name: str) -> Any:  # noqa: D102
        return self._of_output(sample_weight, name, shared=True)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the student, so that `ModelCheckpoint` keeps what one ships."""
        self.student.save(filepath, *args, **kwargs)

    def _of_output(self, given: Any, name: str, *, shared: bool = False) -> Any:
        if isinstance(given, Mapping):
            return given.get(name)
        if isinstance(given, list | tuple):
            return given[list(self._parts.by_name).index(name)]
        if given is None or shared:
            return given
        raise ConfigurationError(
            f"Expected y as a dict with the keys {', '.join(self._parts.by_name)}. Received: one "
            f"tensor of shape {tuple(given.shape)}."
        )


class _Held:
    """Keeps teachers out of what Keras tracks, trains and saves."""

    def __init__(self, teachers: dict[str, Teacher]) -> None:
        self.teachers = teachers


def _heads(student: keras.Model) -> dict[str, keras.Model]:
    """Returns the student up to each of its outputs, by the output's name."""
    if not getattr(student, "inputs", None) or not student.outputs:
        raise UnsupportedModelError(
            f"Expected a Functional student. Received: {student.name!r}, a "
            f"{type(student).__name__} whose outputs cannot be seen."
        )
    structure = student._nested_outputs
    names = sorted(structure) if isinstance(structure, Mapping) else student.output_names
    names = [name.removeprefix("quant_") for name in names]
    return {
        name: keras.Model(student.inputs, output, name=f"{student.name}_{name}")
        for name, output in zip(names, student.outputs, strict=True)
    }


def _part(output: str, head: keras.Model, teacher: Teacher | None, given: dict[str, Any]) -> Part:
    task = given["tasks"] or "auto"
    outputs = resolve_outputs(head, "auto", role="student", task=task)
    if task == "auto" and teacher is not None and teacher.outputs == "sigmoid":
        task = "multilabel"
    decided = resolve_task(head, outputs, task)
    losses = given["losses"]
    if losses is None:
        losses = [] if teacher is None else [SoftTargets()]
    if teacher is None and losses:
        raise ConfigurationError(
            f"The output {output!r} has distillation losses and no teacher. Pass teachers="
            f"{{{output!r}: ...}}, or leave out its losses."
        )
    check_models(teacher, head, decided, own_inputs=True)
    objective = Objective(losses, given["hard_label_weights"], None, decided, prefix=f"{output}_")
    if objective.needs_input_gradient:
        raise ConfigurationError(
            f"Losses on gradients by the inputs are for students with one output. Received: one "
            f"for {output!r}."
        )
    weight = given["weights"]
    return Part(objective, outputs, decided, 1.0 if weight is None else weight)
