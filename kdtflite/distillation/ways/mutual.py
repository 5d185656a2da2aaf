"""Deep mutual learning (Zhang et al., arXiv 1706.00384)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.checks.compatibility import check_teacher
from kdtflite.distillation.joint_objective import JointObjective
from kdtflite.distillation.losses import DistillationLoss, SoftTargets
from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.objective import Objective
from kdtflite.distillation.outputs import as_classes, resolve_outputs, resolve_task
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.step import Observed, Step
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.teachers.model import check_ends
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.joint import JointDistiller
from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.inspect import find_output_step

__all__ = ["MutualDistiller"]


class MutualDistiller(JointDistiller):
    """Trains several students on the labels and on one another, without a large teacher.

        Lₖ = w · L_hard(y, student_k) + v / (K - 1) · Σ_{l ≠ k} KL(p_l ‖ p_k)

    (Zhang et al., arXiv 1706.00384, with w = v = 1.) No gradient flows into the peers that a
    student learns from. All students take their step together, from one forward pass each; in the
    paper they take turns within a batch, at K passes for each step.

    Compile, fit, evaluate and predict as with any Keras model. Outputs and metrics go by the
    students' names: `small_accuracy`, `small_peers_loss`. Save and convert the `students`.

    Args:
        students: Two or more models with different names, or one with a `teacher`. Keras 3
            models are converted: the trained ones are `distiller.students`.
        teacher: A frozen peer of all students, as `Distiller` takes a teacher; by default none.
        loss: The loss on logits by which a student learns from a peer; by default SoftTargets(1.0).
        hard_label_weight: w, from 0 to 1, or a schedule.
        peer_weight: v, or a schedule.
        teacher_preprocessing: Turns the inputs of `fit` into the teacher's.
        task: "multiclass", "multilabel", "regression", or "auto" to read it off the outputs.
        name: Name of this model.

    Raises:
        ConfigurationError: Too few students, two of the same name, or a loss that needs more than
            logits.
        ShapeMismatchError: Students with different inputs or classes.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> data = kdtflite.data.load_dataset("digits")
        >>> def build(units, name):
        ...     layers = [keras.layers.Flatten(), keras.layers.Dense(units, "relu")]
        ...     layers = [keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)]
        ...     return keras.Sequential(layers, name=name)
        >>> peers = MutualDistiller([build(8, "small"), build(32, "large")])
        >>> peers.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = peers.fit(data.train.x, data.train.y, verbose=0)
        >>> list(history.history)[:2]
        ['loss', 'small_loss']
    """

    _weight_arguments = "hard_label_weight= and peer_weight="

    def __init__(
        self,
        students: Sequence[Any],
        *,
        teacher: Any = None,
        loss: LogitsLoss | None = None,
        hard_label_weight: float | Schedule = 1.0,
        peer_weight: float | Schedule = 1.0,
        teacher_preprocessing: Any = None,
        task: str = "auto",
        name: str = "mutual_distiller",
    ) -> None:
        models = [as_tf_keras(student) for student in students]
        loss = SoftTargets(1.0) if loss is None else loss
        _check_peers(models, teacher, loss)
        frozen = (
            None if teacher is None else as_teacher(teacher, preprocessing=teacher_preprocessing)
        )
        objectives = []
        for model in models:
            check_ends(model, role="student")
            outputs = resolve_outputs(model, "auto", role="student", task=task)
            decided = resolve_task(model, outputs, task)
            check_teacher(frozen, model, decided)
            objectives.append(
                Objective(
                    [_FromPeers(loss)],
                    hard_label_weight,
                    [peer_weight],
                    outputs=outputs,
                    task=decided,
                    output_shape=tuple(model.output_shape),
                    guessed=task == "auto",
                    scores_teacher=False,
                    output_step=find_output_step(model),
                    name=model.name,
                )
            )
        super().__init__(JointObjective(objectives, labels_by_name=False), models, name=name)
        self._students = models
        self._teacher = frozen

    @property
    def students(self) -> list[keras.Model]:
        """The students, in order."""
        return list(self._students)

    @property
    def trained_model(self) -> keras.Model:
        """Raises ConfigurationError: there is no single trained model."""
        count = len(self._students)
        raise ConfigurationError(
            f"Expected a single trained model. Received: {type(self).__name__} with {count} "
            f"student{'s' if count != 1 else ''}. Use one of them, for example "
            f"{self.name}.students[0]."
        )

    @property
    def _frozen_teachers(self) -> list[Teacher]:
        return [] if self._teacher is None else [self._teacher]

    def observe(self, x: Any, *, training: bool) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: D102
        return {student.name: student(x, training=training) for student in self._students}, {}

    def observe_teachers(self, x: Any, logits: Mapping[str, tf.Tensor]) -> dict[str, Observed]:  # noqa: D102
        shown = {name: tf.stop_gradient(values) for name, values in logits.items()}
        if self._teacher is not None:
            task = next(iter(self._objective)).task
            shown[_TEACHER] = as_classes(self._teacher.observe(x).logits, task)
        observed = {}
        for name in logits:
            peers = {peer: values for peer, values in shown.items() if peer != name}
            observed[name] = Observed(shown[name], peers)  # the loss reads the peers alone
        return observed


_TEACHER = "teacher's own"  # no layer name: a student may be called "teacher"


class _FromPeers(DistillationLoss):
    """The mean over a student's peers of a loss on logits."""

    def __init__(self, loss: LogitsLoss) -> None:
        super().__init__(name="peers")
        self.loss = loss
        self.tasks = loss.tasks  # type: ignore[misc]  # those of what it wraps

    @property
    def schedules(self) -> list[Schedule]:
        return self.loss.schedules

    def compute(self, step: Step) -> tf.Tensor:
        peers = step.teacher.features.values()
        losses = [self.loss.compute(replace(step, teacher=Observed(peer))) for peer in peers]
        return tf.add_n(losses) / len(losses)


def _check_peers(students: list[keras.Model], teacher: Any, loss: Any) -> None:
    names = [student.name for student in students]
    if len(students) + (teacher is not None) < 2 or not students:
        raise ConfigurationError(
            "Expected two students or more, or one and a teacher. Received: "
            f"{len(students)} student{'s' if len(students) != 1 else ''}"
            f"{' and a teacher' if teacher is not None else ''}."
        )
    if len(set(names)) < len(names):
        raise ConfigurationError(
            "Expected students with different names, by which outputs and metrics go. "
            f"Received: {', '.join(names)}. Pass name= to the models."
        )
    if not isinstance(loss, LogitsLoss):
        raise ConfigurationError(
            f"Peers are compared by a loss on logits. Received: {type(loss).__name__}."
        )
    first = students[0]
    for student in students[1:]:
        for what, one, other in (
            ("output", first.output_shape, student.output_shape),
            ("input", first.input_shape, student.input_shape),
        ):
            if one != other:
                raise ShapeMismatchError(
                    f"Peers take the same inputs and decide on the same classes. Expected equal "
                    f"{what}s. Received: {first.name!r} {one}, {student.name!r} {other}."
                )
