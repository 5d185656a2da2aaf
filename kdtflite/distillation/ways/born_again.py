"""Born-again networks (Furlanello et al., arXiv 1805.04770)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tf_keras as keras

from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.fit import Fit
from kdtflite.distillation.ways.stages import Stages, Trained
from kdtflite.errors import ConfigurationError
from kdtflite.models.as_tf_keras import as_tf_keras

__all__ = ["born_again"]


def born_again(
    build_student: Callable[[], Any],
    teacher: Any,
    train: Any,
    fit: Fit | None = None,
    *,
    generations: int = 3,
    folder: str | os.PathLike[str] | None = None,
    **distiller: Any,
) -> Trained:
    """Trains generations of one architecture, each from the generation before.

    Students that are as large as their teacher come out better than it, and the ensemble of all
    generations better still (born-again networks, Furlanello et al., arXiv 1805.04770).

    Args:
        build_student: Makes a new, untrained student. It is called once a generation, after the
            seed of `fit` was set.
        teacher: Teaches the first generation: in the paper, the same architecture trained on the
            hard labels.
        train: A tf.data.Dataset of batches, a pair (x, y), a triple with sample weights, or an
            object with attributes x and y.
        fit: How each is compiled and fitted.
        generations: How many; the paper's gains end after about three.
        folder: Keeps every finished generation's weights; called again with the same losses and
            data, the job goes on. (What a tf.data.Dataset holds and functions do is not compared.)
        **distiller: Options of `Distiller`, the same for each; `teacher_preprocessing` and
            `teacher_outputs` are the first teacher's.

    Returns:
        Every generation, and what `fit` recorded of it. `EnsembleTeacher(result.models)` is the
        paper's ensemble.

    Raises:
        ConfigurationError: No function that builds, no generations, or options that cannot serve
            several students.
        OutputExistsError: `folder` holds another job.

    Example:
        >>> born = born_again(build_student, teacher, (x, y), Fit(epochs=20, seed=0))
        >>> both = kdtflite.teachers.EnsembleTeacher(born.models)
    """
    if isinstance(build_student, keras.Model) or not callable(build_student):
        raise ConfigurationError(
            "Expected build_student to be a function that makes a student. Received: a "
            f"{type(build_student).__name__}. Pass for example lambda: build(widths=[8, 16])."
        )
    if generations < 1:
        raise ConfigurationError(
            f"Expected one generation or more. Received: generations={generations}."
        )
    fit = fit or Fit()
    taught_by = as_teacher(
        teacher,
        preprocessing=distiller.pop("teacher_preprocessing", None),
        outputs=distiller.pop("teacher_outputs", "auto"),
    )
    stages = Stages("Born again", fit, distiller, folder)
    models: list[keras.Model] = []
    histories = []
    for number in range(1, generations + 1):
        if fit.seed is not None:  # other first weights in every generation, the same when resumed
            keras.utils.set_random_seed(fit.seed + number)
        student = as_tf_keras(build_student())
        if any(student is model for model in models):
            raise ConfigurationError(
                "Expected build_student to make a new model at each call. Received: the same one."
            )
        histories.append(stages.distil(student, taught_by, train, number=number, count=generations))
        models.append(student)
        taught_by = ModelTeacher(
            student,
            preprocessing=distiller.get("student_preprocessing"),
            outputs=distiller.get("student_outputs", "auto"),
        )
    return Trained(tuple(models), tuple(histories))
