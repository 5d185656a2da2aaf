"""Born-again networks (Furlanello et al., arXiv 1805.04770)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tf_keras as keras

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
    """Trains generations of one architecture, each taught by the generation before.

    Students as large as their teacher become better than it, and the ensemble of all generations
    is better still (born-again networks, Furlanello et al., arXiv 1805.04770).

    Args:
        build_student: Makes a new, untrained student. It is called once per generation, after the
            seed of `fit` was set.
        teacher: The teacher of the first generation: in the paper, the same architecture trained on
            the hard labels.
        train: A tf.data.Dataset of batches, a pair (x, y), a triple with sample weights, or an
            object with attributes x and y.
        fit: How each generation is compiled and fitted.
        generations: Number of generations; in the paper the gains end after about three.
        folder: Where the weights of every finished generation are saved. Called again with the
            same losses and data, the job resumes. (The contents of a tf.data.Dataset and of
            functions are not compared.)
        **distiller: Options of `Distiller`, the same for each; `teacher_preprocessing` and
            `teacher_outputs` are for the first teacher.

    Returns:
        Every generation, and what `fit` recorded for it. `EnsembleTeacher(result.models)` is the
        paper's ensemble.

    Raises:
        ConfigurationError: `build_student` is not a function, no generations, or options that
            cannot serve several students.
        OutputExistsError: `folder` holds another job.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> data = kdtflite.data.load_dataset("digits")
        >>> def build():
        ...     layers = [keras.layers.Flatten(), keras.layers.Dense(16, "relu")]
        ...     return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])
        >>> born = born_again(build, build(), data.train, Fit(epochs=1), generations=2)
        >>> ensemble = kdtflite.teachers.EnsembleTeacher(born.models)
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
    stages = Stages("Born again", fit, distiller, folder)
    current = stages.take_teacher(teacher)
    models: list[keras.Model] = []
    histories = []
    for number in range(1, generations + 1):
        if fit.seed is not None:  # each generation has its own initial weights, also when resumed
            keras.utils.set_random_seed(fit.seed + number)
        student = as_tf_keras(build_student())
        if any(student is model for model in models):
            raise ConfigurationError(
                "Expected build_student to make a new model at each call. Received: the same one."
            )
        histories.append(stages.distill(student, current, train, number=number, count=generations))
        models.append(student)
        current = stages.make_teacher(student)
    return Trained(tuple(models), tuple(histories))
