"""Conversion of anything that can teach to a Teacher."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tf_keras as keras

from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.teachers.cache.manifest import PLAN
from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.teachers.lite import LiteTeacher
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.teachers.onnx import OnnxTeacher
from kdtflite.distillation.teachers.saved_model import SavedModelTeacher
from kdtflite.errors import ConfigurationError, ModelFileError, UnsupportedModelError, to_line
from kdtflite.lite.model import LiteModel
from kdtflite.models.keras3.conversion import is_from_keras3
from kdtflite.models.load import load_model
from kdtflite.progress import say

__all__ = ["as_teacher"]

_EXPECTED = (
    "Expected a Keras model, a Teacher of kdtflite.teachers, the path of a .keras, .h5, .tflite or "
    ".onnx file or a SavedModel folder, a function of a batch of NumPy arrays, or a list of these"
)


def as_teacher(
    teacher: Any,
    *,
    preprocessing: Callable[[Any], Any] | None = None,
    outputs: str = "auto",
    task: str = "auto",
) -> Teacher:
    """Returns `teacher` if it is a Teacher, else one made of it.

    Args:
        teacher: A Teacher; a tf_keras or Keras 3 model; a LiteModel; the path of a .keras, .h5,
            .tflite or .onnx file or of a SavedModel folder; a Python function of a batch of NumPy
            arrays; or a list of these, whose probabilities are averaged.
        preprocessing: Turns the student's inputs into the teacher's.
        outputs: The teacher's kind of outputs, as `ModelTeacher` takes it. By default a function
            gives logits, unless its outputs sum to 1.
        task: The task of a list of teachers, as `EnsembleTeacher` takes it.

    Raises:
        ConfigurationError: This cannot teach, or it is a Teacher, which has these options itself.
        ModelFileError: The file cannot be read.
        UnsupportedModelError: The model cannot teach as it is.
    """
    if isinstance(teacher, Teacher):
        if preprocessing is not None or outputs != "auto":
            raise ConfigurationError(
                f"A {type(teacher).__name__} has its own preprocessing and outputs. Pass them to "
                "it, and leave out teacher_preprocessing= and teacher_outputs=."
            )
        return teacher
    # Before the functions: a Keras model is callable too.
    if isinstance(teacher, keras.Model) or is_from_keras3(teacher):
        return ModelTeacher(teacher, preprocessing=preprocessing, outputs=outputs)
    if isinstance(teacher, str | os.PathLike):
        return _from_path(Path(teacher), preprocessing=preprocessing, outputs=outputs)
    if isinstance(teacher, LiteModel):
        return LiteTeacher(teacher, preprocessing=preprocessing, outputs=outputs)
    if isinstance(teacher, list | tuple):
        # A list of teachers is a teacher, and so may its members be lists: this recursion is real,
        # and the only one between these modules.
        from kdtflite.distillation.teachers.ensemble import EnsembleTeacher

        members = [as_teacher(one, preprocessing=preprocessing, outputs=outputs) for one in teacher]
        return EnsembleTeacher(members, task=task)
    _refuse(teacher)
    if outputs == "auto" and task == "regression":
        outputs = "values"
    return CallableTeacher(teacher, preprocessing=preprocessing, outputs=outputs)  # type: ignore[arg-type]


def _from_path(path: Path, *, preprocessing: Callable[[Any], Any] | None, outputs: str) -> Teacher:
    options: Mapping[str, Any] = {"preprocessing": preprocessing, "outputs": outputs}
    if path.is_dir():
        return _from_folder(path, options)
    if not path.exists():
        raise ModelFileError(f"There is no teacher at {path}. {_EXPECTED}.")
    with open(path, "rb") as file:
        start = file.read(8)
    if start[4:8] == b"TFL3" or path.suffix.lower() == ".tflite":
        return LiteTeacher(path, **options)
    if path.suffix.lower() == ".onnx":
        return OnnxTeacher(path, **options)
    if path.suffix.lower() in (".keras", ".h5", ".hdf5"):
        return ModelTeacher(load_model(path), **options)
    raise ModelFileError(f"{path} is not a file that can teach. {_EXPECTED}.")


def _from_folder(folder: Path, options: Mapping[str, Any]) -> Teacher:
    if (folder / PLAN).is_file():
        raise ModelFileError(
            f"{folder} is a teacher cache, which only teaches on its own batches. Open it with "
            "kdtflite.teachers.TeacherCache.open(folder), pass that as the teacher, and train on "
            "its batches(data, batch_size=...)."
        )
    if not (folder / "keras_metadata.pb").is_file():
        return SavedModelTeacher(folder, **options)
    try:
        return ModelTeacher(load_model(folder), **options)
    except (ModelFileError, UnsupportedModelError) as error:
        # Its graph is there; only the code of unknown classes is missing.
        say(
            f"{folder} runs by its signature and its layers cannot be tapped, since it does not "
            f"load as a Keras model: {to_line(error)}."
        )
        return SavedModelTeacher(folder, **options)


def _refuse(teacher: Any) -> None:
    """Raises unless `teacher` is a function of a batch."""
    received = f"{type(teacher).__module__}.{type(teacher).__name__}".removeprefix("builtins.")
    if any(base.__module__.split(".")[0] == "torch" for base in type(teacher).__mro__):
        raise ConfigurationError(
            f"A PyTorch module ({type(teacher).__name__}) takes tensors, usually with the channels "
            "first. Wrap it in a function of a NumPy batch and pass that:\n"
            "    def teacher(images):\n"
            "        with torch.no_grad():\n"
            "            return model(torch.from_numpy(images).permute(0, 3, 1, 2)).cpu().numpy()"
        )
    if isinstance(teacher, type):
        raise ConfigurationError(
            f"{_EXPECTED}. Received: the class {teacher.__name__}, not an instance of it."
        )
    if not callable(teacher):
        loaded = hasattr(teacher, "signatures")
        hint = " Pass the path of its folder instead." if loaded else ""
        raise ConfigurationError(f"{_EXPECTED}. Received: {received}.{hint}")
