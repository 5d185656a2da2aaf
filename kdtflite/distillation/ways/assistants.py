"""Teacher assistants (Mirzadeh et al., arXiv 1902.03393)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

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
    """Distills a teacher into ever smaller assistants, each of which teaches the next.

    A student much smaller than its teacher cannot follow it; a model of a size in between can, and
    the student follows that one more easily (Mirzadeh et al., arXiv 1902.03393). In the paper one
    assistant of medium accuracy helps most, and more of them never hurt.

    Args:
        teacher: What `Distiller` takes as a teacher.
        models: The assistants from the largest to the smallest, then the student. Each is trained
            in place (a Keras 3 model is converted first).
        train: A tf.data.Dataset of batches, a pair (x, y), a triple with sample weights, or an
            object with attributes x and y.
        fit: How each model is compiled and fitted.
        folder: Where the weights of every finished model are saved. Called again with the same
            models, losses and data, the job resumes after the last one. (The contents of a
            tf.data.Dataset and of functions are not compared.)
        **distiller: Options of `Distiller`, the same for each. `teacher_preprocessing` and
            `teacher_outputs` are for the first teacher; an assistant gets the inputs it was
            trained on. Losses with weights of their own are passed as a function that makes them.

    Returns:
        The trained models, and what `fit` recorded for each.

    Raises:
        ConfigurationError: No models, the same model twice, or options that cannot serve several
            students.
        OutputExistsError: `folder` holds another job.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> data = kdtflite.data.load_dataset("digits")
        >>> def build(units):
        ...     layers = [keras.layers.Flatten(), keras.layers.Dense(units, "relu")]
        ...     return keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])
        >>> chain = assistant_chain(build(64), [build(16), build(4)], data.train, Fit(epochs=1))
        >>> chain.student is chain.models[-1]
        True
    """
    students = [as_tf_keras(model) for model in models]
    if not students:
        raise ConfigurationError("Expected one model or more for the chain. Received: none.")
    if len(set(map(id, students))) < len(students):
        raise ConfigurationError(
            "Expected a chain of different models, each of which teaches the next. Received: the "
            "same model twice. Build one for each stage."
        )
    stages = Stages("Assistants", fit or Fit(), distiller, folder)
    current = stages.take_teacher(teacher)
    histories = []
    for number, student in enumerate(students, start=1):
        histories.append(
            stages.distill(student, current, train, number=number, count=len(students))
        )
        current = stages.make_teacher(student)
    return Trained(tuple(students), tuple(histories))
