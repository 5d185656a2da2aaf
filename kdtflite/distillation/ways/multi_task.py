"""Students with several outputs, one teacher per task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.checks.compatibility import check_teacher
from kdtflite.distillation.checks.teacher_score import TeacherScore
from kdtflite.distillation.joint_objective import JointObjective
from kdtflite.distillation.losses import DistillationLoss, SoftTargets
from kdtflite.distillation.losses.state import LossState
from kdtflite.distillation.objective import Objective
from kdtflite.distillation.outputs import as_classes, resolve_outputs, resolve_task
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.step import Observed
from kdtflite.distillation.taps import TappedModel
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.joint import JointDistiller
from kdtflite.errors import ConfigurationError, UnsupportedModelError, choose
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.inspect import find_output_step
from kdtflite.models.keras_internals import get_output_structure
from kdtflite.models.layer_names import strip_prefix

__all__ = ["MultiTaskDistiller"]


class MultiTaskDistiller(JointDistiller):
    """Trains one student with several outputs, each on the labels and on the teacher of its task.

        L = Σ_t v_t · (w_t · L_hard(y_t, student_t(x)) + Σᵢ wᵢ · Lᵢ(student_t(x), teacher_t(x)))

    Experts of single tasks teach a network that does them all (cross-task distillation as in
    Li & Bilen, "Knowledge Distillation for Multi-task Learning", arXiv 2007.06889). The student
    runs once per step, and so does each teacher.

    Compile, fit, evaluate and predict as with any Keras model: `y` is a dict by output, or a list
    in the outputs' order, and so is `sample_weight` unless one serves all; metrics go by the
    outputs' names.

    Args:
        student: A model with several outputs, each with its own name.
        teachers: What `Distiller` takes as a teacher, by output. An output without one learns
            from its labels alone.
        losses: Distillation losses by output; by default `SoftTargets(temperature=4.0)` (for
            regression there is no default).
        weights: v_t by output, numbers or schedules; by default 1.
        hard_label_weights: w_t by output, as `Distiller` takes hard_label_weight.
        tasks: By output "multiclass", "multilabel" or "regression", where the last layer does not
            show it.
        teacher_preprocessing: By output, turns the inputs of `fit` into that teacher's.
        name: Name of this model.

    Raises:
        ConfigurationError: An output that does not exist, or losses that do not suit it.
        ShapeMismatchError: A teacher that does not fit its output.
        UnsupportedModelError: A student whose outputs cannot be seen.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> data = kdtflite.data.load_dataset("digits")
        >>> inputs = keras.Input((8, 8, 1))
        >>> features = keras.layers.Dense(16, "relu")(keras.layers.Flatten()(inputs))
        >>> outputs = [keras.layers.Dense(n, name=name)(features) for n, name in
        ...            ((10, "digit"), (2, "odd"))]
        >>> teacher = keras.Sequential([inputs, keras.layers.Flatten(), keras.layers.Dense(10)])
        >>> distiller = MultiTaskDistiller(keras.Model(inputs, outputs), {"digit": teacher})
        >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> labels = {"digit": data.train.y, "odd": data.train.y % 2}
        >>> history = distiller.fit(data.train.x, labels, verbose=0)
        >>> list(history.history)[:2]
        ['loss', 'digit_loss']
    """

    _weight_arguments = "hard_label_weights= and weights="

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
        heads = _split_heads(student)
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
        objectives: dict[str, Objective] = {}
        for output, head in heads.items():
            given = {option: values.get(output) for option, values in options.items()}
            if given["teachers"] is not None:
                held[output] = as_teacher(
                    given["teachers"], preprocessing=given["teacher_preprocessing"]
                )
            objectives[output] = _build_objective(output, head, held.get(output), given)
        joint = JointObjective(objectives.values(), labels_by_name=True)
        super().__init__(joint, [student], name=name)
        self.student = student
        layers = [path for each in joint for path in each.student_layers]
        self._tapped = TappedModel(student, layers, role="student")
        for output, teacher in held.items():
            objective = objectives[output]
            held[output] = own = copy.copy(teacher)  # others may tap other layers of the same
            objective.build(self._tapped.shapes, own.tap(objective.teacher_layers))
        # Not a dict, which Keras would wrap to track, train and save what is in it.
        self._teachers = MappingProxyType(held)
        # Checkpoints of this model keep what the losses train; the student's own files do not.
        self._loss_state = LossState(self.loss_variables)

    @property
    def _frozen_teachers(self) -> list[Teacher]:
        return list(self._teachers.values())

    def _list_scores(self) -> list[tuple[str, TeacherScore]]:
        scores = {output: each.teacher_score for output, each in self._objective.by_name.items()}
        return [
            (teacher.name, score)
            for output, teacher in self._teachers.items()
            if (score := scores[output]) is not None
        ]

    def observe(self, x: Any, *, training: bool) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: D102
        outputs, features = self._tapped(x, training=training)
        names = self._objective.by_name
        return dict(zip(names, tf.nest.flatten(outputs), strict=True)), features

    def observe_teachers(self, x: Any, logits: Mapping[str, tf.Tensor]) -> dict[str, Observed]:  # noqa: D102
        shown = {}
        for output, objective in self._objective.by_name.items():
            teacher = self._teachers.get(output)
            if teacher is None or not objective.losses:
                shown[output] = Observed(logits[output])  # no loss looks at it
                continue
            seen = teacher.observe(x)
            shown[output] = Observed(as_classes(seen.logits, objective.task), seen.features)
        return shown


def _split_heads(student: keras.Model) -> dict[str, keras.Model]:
    """Returns the student up to each of its outputs, by the output's name."""
    if not getattr(student, "inputs", None) or not student.outputs:
        raise UnsupportedModelError(
            f"Expected a Functional student. Received: {student.name!r}, a "
            f"{type(student).__name__} whose outputs cannot be seen."
        )
    structure = get_output_structure(student)
    names = sorted(structure) if isinstance(structure, Mapping) else student.output_names
    names = [strip_prefix(name) for name in names]
    return {
        name: keras.Model(student.inputs, output, name=f"{student.name}_{name}")
        for name, output in zip(names, student.outputs, strict=True)
    }


def _build_objective(
    output: str, head: keras.Model, teacher: Teacher | None, given: dict[str, Any]
) -> Objective:
    task = given["tasks"] or "auto"
    outputs = resolve_outputs(head, "auto", role="student", task=task)
    decided = resolve_task(head, outputs, task, getattr(teacher, "outputs", None))
    losses = given["losses"]
    if losses is None:
        losses = [] if teacher is None else [SoftTargets()]
    if teacher is None and losses:
        raise ConfigurationError(
            f"The output {output!r} has distillation losses and no teacher. Pass teachers="
            f"{{{output!r}: ...}}, or leave out its losses."
        )
    check_teacher(teacher, head, decided)
    objective = Objective(
        losses,
        given["hard_label_weights"],
        None,
        outputs=outputs,
        task=decided,
        output_shape=tuple(head.output_shape),
        guessed=given["tasks"] is None,
        how_to_say=f"tasks={{{{{output!r}: {{!r}}}}}}",
        output_step=find_output_step(head),
        name=output,
        weight=1.0 if given["weights"] is None else given["weights"],
    )
    if objective.needs_input_gradient:
        raise ConfigurationError(
            "Losses on gradients with respect to the inputs are for students with one output. "
            f"Received: one for {output!r}."
        )
    return objective
