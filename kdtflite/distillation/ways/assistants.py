"""Teacher assistants (Mirzadeh et al., arXiv 1902.03393)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.fit import Fit
from kdtflite.distillation.ways.stages import Stages, Trained
from kdtflite.errors import ConfigurationError
from kdtflite.models.as_tf_keras import as_tf_keras

__all__ = ["assistant_chain"]


def assistant_chain(
    teacher: Any,
    models: Sequence[Any],
    train: Any,
    fit: Fit | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    **distiller: Any,
) -> Trained:
    """Distils a teacher into assistants of falling size, each the next one's teacher.

    A student far smaller than its teacher cannot follow it; one of a size between can, and is
    followed more easily (Mirzadeh et al., arXiv 1902.03393). The paper finds one assistant of
    middling accuracy worth most, and more of them never worse.

    Args:
        teacher: What `Distiller` takes as a teacher.
        models: The assistants from the largest to the smallest, then the student. Each is trained
            in place (a Keras 3 model is converted first).
        train: A tf.data.Dataset of batches, a pair (x, y), a triple with sample weights, or an
            object with attributes x and y.
        fit: How each is compiled and fitted.
        folder: Keeps every finished model's weights; called again with the same models, losses and
            data, the job goes on after the last one. (What a tf.data.Dataset holds and functions
            do is not compared.)
        **distiller: Options of `Distiller`, the same for each. `teacher_preprocessing` and
            `teacher_outputs` are the first teacher's; an assistant is given what it was trained
            on. Losses that train something of their own are made by a function.

    Returns:
        The models, trained, and what `fit` recorded of each.

    Raises:
        ConfigurationError: No models, one that comes twice, or options that cannot serve several
            students.
        OutputExistsError: `folder` holds another job.

    Example:
        >>> chain = assistant_chain(teacher, [middle, small], (x, y), Fit(epochs=20))
        >>> lite = kdtflite.convert(chain.student, x)
    """
    students = [as_tf_keras(model) for model in models]
    if not students:
        raise ConfigurationError("Expected one model or more for the chain. Received: none.")
    if len(set(map(id, students))) < len(students):
        raise ConfigurationError(
            "Expected a chain of different models, each the next one's teacher. Received: the same "
            "one twice. Build one for each stage."
        )
    taught_by = as_teacher(
        teacher,
        preprocessing=distiller.pop("teacher_preprocessing", None),
        outputs=distiller.pop("teacher_outputs", "auto"),
    )
    stages = Stages("Assistants", fit or Fit(), distiller, folder)
    histories = []
    for number, student in enumerate(students, start=1):
        histories.append(
            stages.distil(student, taught_by, train, number=number, count=len(students))
        )
        taught_by = ModelTeacher(
            student,
            preprocessing=distiller.get("student_preprocessing"),
            outputs=distiller.get("student_outputs", "auto"),
        )
    return Trained(tuple(students), tuple(histories))
