"""Deep mutual learning (Zhang et al., arXiv 1706.00384)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.check_first import check_first_batch
from kdtflite.distillation.check_models import check_models
from kdtflite.distillation.losses import DistillationLoss, SoftTargets
from kdtflite.distillation.losses.base import LogitsLoss
from kdtflite.distillation.objective import Objective
from kdtflite.distillation.outputs import as_classes, resolve_outputs, resolve_task
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.step import Observed, Step
from kdtflite.distillation.teachers.model import check_ends
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.joint import JointDistiller, Part
from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.models.as_tf_keras import as_tf_keras

__all__ = ["MutualDistiller"]


class MutualDistiller(JointDistiller):
    """Several students that learn from the labels and from one another, without a large teacher.

        Lₖ = w · L_hard(y, student_k) + v / (K - 1) · Σ_{l ≠ k} KL(p_l ‖ p_k)

    (Zhang et al., arXiv 1706.00384, with w = v = 1.) No gradient flows into the peers that a
    student learns from. All students take their step together, from one forward pass each; the
    paper's take turns within a batch, at K passes for each step.

    Compile, fit, evaluate and predict as any Keras model. Outputs and metrics go by the students'
    names: `small_accuracy`, `small_peers_loss`.

    Args:
        students: Two or more models with names of their own, or one with a `teacher`. Keras 3
            models are converted: the trained ones are `distiller.students`.
        teacher: A frozen peer of all students, as `Distiller` takes a teacher; by default none.
        loss: How a student learns from a peer, a loss on logits; by default SoftTargets(1.0).
        hard_label_weight: w, from 0 to 1, or a schedule.
        peer_weight: v, or a schedule.
        teacher_preprocessing: Turns batches into the teacher's inputs.
        task: "multiclass", "multilabel", "regression", or "auto" to read it off the outputs.
        name: Name of this model.

    Raises:
        ConfigurationError: Too few students, names that are not their own, or a loss that needs
            more than logits.
        ShapeMismatchError: Students of different inputs or classes.

    Example:
        >>> peers = MutualDistiller([small, middle])
        >>> peers.compile("adam", SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])
        >>> peers.fit(x, y, epochs=20)
    """

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
        _check(models, teacher, loss)
        frozen = (
            None if teacher is None else as_teacher(teacher, preprocessing=teacher_preprocessing)
        )
        parts = {}
        for model in models:
            check_ends(model, role="student")
            outputs = resolve_outputs(model, "auto", role="student", task=task)
            decided = resolve_task(model, outputs, task)
            check_models(frozen, model, decided, own_inputs=True)
            objective = Objective(
                [_FromPeers(loss)],
                hard_label_weight,
                [peer_weight],
                decided,
                prefix=f"{model.name}_",
            )
            parts[model.name] = Part(objective, outputs, decided)
        super().__init__(parts, models, name=name)
        self._teacher = frozen

    @property
    def students(self) -> list[keras.Model]:
        """The students, in order."""
        return list(self._students)

    def observe(self, x: Any, *, training: bool) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: D102
        return {student.name: student(x, training=training) for student in self._students}, {}

    def checked(self, x: Any, y: Any) -> Any:  # noqa: D102
        # All students take the same inputs and labels.
        return check_first_batch(
            self._students[0], next(iter(self._parts)).objective.hard_labels, x, y
        )

    def taught(self, x: Any, logits: Mapping[str, tf.Tensor]) -> dict[str, Observed]:  # noqa: D102
        shown = {name: tf.stop_gradient(values) for name, values in logits.items()}
        if self._teacher is not None:
            task = next(iter(self._parts)).task
            shown[_TEACHER] = as_classes(self._teacher.observe(x).logits, task)
        taught = {}
        for name in logits:
            peers = {peer: values for peer, values in shown.items() if peer != name}
            taught[name] = Observed(shown[name], peers)  # the loss reads the peers alone
        return taught


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

    def of_step(self, step: Step) -> tf.Tensor:
        peers = step.teacher.features.values()
        losses = [
            self.loss.of_step(Step(step.student, Observed(peer), step.labels)) for peer in peers
        ]
        return tf.add_n(losses) / len(losses)


def _check(students: list[keras.Model], teacher: Any, loss: Any) -> None:
    names = [student.name for student in students]
    if len(students) + (teacher is not None) < 2 or not students:
        raise ConfigurationError(
            "Expected two students or more, or one and a teacher. Received: "
            f"{len(students)} student{'s' if len(students) != 1 else ''}"
            f"{' and a teacher' if teacher is not None else ''}."
        )
    if len(set(names)) < len(names):
        raise ConfigurationError(
            "Expected students with names of their own, by which outputs and metrics go. "
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
