"""A run's teacher that is loaded: a Keras model, or another file that teaches as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtflite.errors import DataError, ModelFileError, ShapeMismatchError
from kdtflite.models.model_files import open_model_file
from kdtflite.progress import say

if TYPE_CHECKING:
    from kdtflite.data.splits import Dataset

# What needs TensorFlow is imported in the functions: a missing file is refused before that.

__all__ = [
    "check_same_teacher",
    "check_teacher_file",
    "is_keras_file",
    "load_teacher",
    "measure_teacher",
]

_KERAS_ENDINGS = (".keras", ".h5", ".hdf5")
_OTHER_ENDINGS = (".tflite", ".onnx")


def is_keras_file(path: str | os.PathLike[str]) -> bool:
    """Says whether a file is loaded as a Keras model; a .tflite or ONNX file teaches as it is."""
    return Path(path).suffix.lower() not in _OTHER_ENDINGS


def check_teacher_file(path: str | os.PathLike[str]) -> None:
    """Refuses a file that cannot teach, before anything else is loaded.

    Raises:
        ModelFileError: The file is missing, damaged, or of another format.
    """
    path = Path(path)
    if is_keras_file(path) and (path.is_dir() or path.suffix.lower() in _KERAS_ENDINGS):
        open_model_file(path)
    elif not path.is_file():
        endings = ", ".join((*_KERAS_ENDINGS, *_OTHER_ENDINGS))
        raise ModelFileError(
            f"There is no file or folder {path} that can teach. Expected a file ending in one of "
            f"{endings}, or a SavedModel folder."
        )


def load_teacher(path: str | os.PathLike[str], dataset: Dataset) -> Any:
    """Returns a Keras model, or a Teacher for another file.

    Args:
        path: The file or folder.
        dataset: The data, whose classes the teacher has to know.

    Raises:
        ShapeMismatchError: It tells another number of classes apart.
        ModelFileError: The file cannot be read.
    """
    from kdtflite.distillation.teachers.resolve import as_teacher
    from kdtflite.models.inspect import count_classes
    from kdtflite.models.load import load_model

    if not is_keras_file(path):
        return as_teacher(path)
    model = load_model(path)
    if count_classes(model) != dataset.classes:
        raise ShapeMismatchError(
            f"The teacher {path} does not fit the data. Expected {dataset.classes} classes. "
            f"Received: {count_classes(model)}, teacher output {tuple(model.output_shape)}."
        )
    return model


def measure_teacher(teacher: Any, student: Any, dataset: Dataset, path: str) -> None:
    """Reports a loaded teacher's accuracy: whether its classes are in the data's order shows there.

    Few files have names of classes by which to find out.

    Args:
        teacher: What `load_teacher` returned.
        student: The student, which takes the data.
        dataset: The data; the validation samples are used.
        path: Where the teacher was loaded from.
    """
    from kdtflite.distillation.teachers.resolve import as_teacher

    validation, names = dataset.validation, dataset.class_names
    asked = as_teacher(teacher)
    asked.check_inputs(student)
    batches = np.array_split(validation.x, -(-len(validation) // 256))
    outputs = np.concatenate([asked(batch).numpy() for batch in batches])
    if np.ndim(outputs) != 2 or np.shape(outputs)[1] != len(names):
        return
    accuracy = float((outputs.argmax(axis=1) == validation.y).mean())
    say(f"The teacher {path}: accuracy {accuracy:.4f} on validation samples.")
    if accuracy <= np.bincount(validation.y).max() / len(validation):
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        say(
            "That is no better than the most frequent class. Expected outputs in the order of the "
            f"data's classes ({shown}), and the preprocessing that the teacher was trained with."
        )


def check_same_teacher(teacher: Any, fingerprint: str, path: str) -> Any:
    """Returns a teacher, unless its file changed since the run began.

    Raises:
        DataError: It is another one.
    """
    if teacher.fingerprint() != fingerprint:
        raise DataError(
            f"The teacher {path} changed since the run began. Expected the same file. Pass --force "
            "to start over."
        )
    return teacher
