"""A job in stages, each of which trains a student; a stopped job resumes where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tf_keras as keras

from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.losses.base import DistillationLoss, LogitsLoss
from kdtflite.distillation.schedules import Schedule
from kdtflite.distillation.teachers.base import Teacher
from kdtflite.distillation.teachers.cache.data import ArrayData
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.fit import Fit
from kdtflite.errors import ConfigurationError, OutputExistsError
from kdtflite.files import read_json, sha256, write_atomically, write_json
from kdtflite.progress import say

__all__ = ["Stages", "Trained"]

History = dict[str, list[float]]
_COMPARED = (str, int, float, list, tuple, DistillationLoss, Schedule)


@dataclass(frozen=True)
class Trained:
    """The result of a job in stages.

    Attributes:
        models: The students of all stages, in order.
        histories: What `fit` recorded for each, values by name.
    """

    models: tuple[keras.Model, ...]
    histories: tuple[History, ...]

    @property
    def student(self) -> keras.Model:
        """The student of the last stage."""
        return self.models[-1]


class Stages:
    """Trains students one after another, and saves each in a folder when it is finished.

    Args:
        title: Name of the job, for progress lines.
        fit: How each student is compiled and fitted.
        options: Options of `Distiller`; `losses` may be a function that makes them.
        folder: Where the weights (.h5) and history of finished stages are saved, or None.

    Raises:
        ConfigurationError: Losses that cannot serve several students.
    """

    def __init__(
        self,
        title: str,
        fit: Fit,
        options: Mapping[str, Any],
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self.title = title
        self.fit = fit
        self.options = dict(options)
        self.folder = None if folder is None else Path(folder)
        _check_losses(self.options.get("losses"))

    def take_teacher(self, teacher: Any) -> Teacher:
        """Returns the first teacher, with the options that belong to it alone."""
        return as_teacher(
            teacher,
            preprocessing=self.options.pop("teacher_preprocessing", None),
            outputs=self.options.pop("teacher_outputs", "auto"),
        )

    def make_teacher(self, student: keras.Model) -> Teacher:
        """Returns a trained student as the teacher of the next one."""
        return ModelTeacher(
            student,
            preprocessing=self.options.get("student_preprocessing"),
            outputs=self.options.get("student_outputs", "auto"),
        )

    def distill(
        self, student: keras.Model, teacher: Teacher, train: Any, *, number: int, count: int
    ) -> History:
        """Trains `student` with `teacher`, or loads the result of an earlier run.

        Args:
            student: A tf_keras model; it is trained in place.
            teacher: Its teacher.
            train: As `Fit.run` takes it.
            number: The stage's number, from 1.
            count: How many stages there are.

        Raises:
            OutputExistsError: The folder holds this stage of another job.
        """
        title = f"{self.title}, stage {number} of {count}: {student.name!r}"
        about = {
            "student": student.name,
            "shapes": [list(weight.shape) for weight in student.weights],
            "teacher": "" if self.folder is None else teacher.fingerprint(),
            "epochs": self.fit.epochs,
            "batch size": self.fit.batch_size,
            "seed": self.fit.seed,
            **({} if self.folder is None else self._describe_training(train)),
        }

        def train_student() -> History:
            say(f"{title} learns from {teacher.name!r}")
            options = dict(self.options)
            if _is_factory(options.get("losses")):
                options["losses"] = options["losses"]()
            distiller = Distiller(student, teacher, **options)
            self.fit.compile(distiller)
            return self.fit.run(distiller, train, stage=number)

        history = self._run_once(
            student, f"{number:02d}_{_as_file_name(student.name)}", about, train_student
        )
        last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.items() if values)
        say(f"{title} is trained: {last}")
        return history

    def _describe_training(self, train: Any) -> dict[str, Any]:
        """Returns what a stage is trained with, as far as it can be compared."""
        losses: Any = self.options.get("losses")
        weights = [self.options.get(name) for name in ("hard_label_weight", "loss_weights")]
        return {
            "losses": _as_json(losses() if _is_factory(losses) else losses),
            "weights": _as_json(weights),
            "data": _fingerprint_data(train),
        }

    def _run_once(
        self, model: keras.Model, name: str, about: dict[str, Any], train: Callable[[], History]
    ) -> History:
        """Runs `train`, or loads the weights that it gave before into `model`."""
        if self.folder is None:
            return train()
        weights, record = self.folder / f"{name}.h5", self.folder / f"{name}.json"
        done = read_json(record)  # it is written last
        if _is_record(done) and weights.is_file():
            differ = [key for key in about if done["about"].get(key) != about[key]]
            if differ or sha256(weights) != done.get("sha256"):
                raise OutputExistsError(
                    f"{record} is of another job: {', '.join(differ) or 'the weights'} differ. "
                    "Choose another folder, or remove this one to start over."
                )
            model.load_weights(weights)
            say(f"{self.title}: {model.name!r} was trained before, from {weights}")
            return dict(done["history"])
        if record.is_file():
            say(f"{self.title}: {record} or the weights beside it are damaged; trained again")
        history = train()
        with write_atomically(weights, overwrite=True) as path:
            model.save_weights(path)
        done = {"about": about, "sha256": sha256(weights), "history": history}
        write_json(record, done, overwrite=True)
        return history


def _is_record(done: Any) -> bool:
    """Says whether a value has the form of what a finished stage writes."""
    return (
        isinstance(done, dict)
        and isinstance(done.get("about"), dict)
        and isinstance(done.get("history"), dict)
        and all(
            isinstance(values, list) and all(isinstance(value, int | float) for value in values)
            for values in done["history"].values()
        )
    )


def _check_losses(losses: Any) -> None:
    if _is_factory(losses):
        return
    stateful = [
        loss.name
        for loss in (losses if isinstance(losses, list | tuple) else ())
        if isinstance(loss, DistillationLoss) and not isinstance(loss, LogitsLoss)
    ]
    if stateful:
        raise ConfigurationError(
            f"The losses {', '.join(stateful)} keep what they train for one student. Expected a "
            "function that makes new losses for each student. Pass losses=lambda: [...]."
        )


def _as_json(options: Any) -> Any:
    """Returns losses, schedules and numbers as JSON values, to be compared."""

    def simplify(value: Any) -> Any:
        config = (
            value.get_config() if hasattr(value, "get_config") else getattr(value, "__dict__", None)
        )
        if config is None:  # a NumPy number
            return repr(value)
        simple = {
            name: entry
            for name, entry in config.items()
            if not name.startswith("_") and (entry is None or isinstance(entry, _COMPARED))
        }
        return {"is": type(value).__name__, **simple}

    return json.loads(json.dumps(options, default=simplify))


def _fingerprint_data(train: Any) -> str:
    """Returns a digest of arrays; "" for a tf.data.Dataset, which would have to be read."""
    parts = train if isinstance(train, tuple | list) else None
    if parts is None and hasattr(train, "x") and hasattr(train, "y"):
        parts = (train.x, train.y)
    if parts is None:
        return ""
    return ArrayData([part for part in parts if part is not None]).fingerprint


def _is_factory(losses: Any) -> bool:
    """Whether `losses` is a function that makes losses; a loss itself is callable too."""
    return callable(losses) and not isinstance(losses, DistillationLoss)


def _as_file_name(name: str) -> str:
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    # Two names may become alike.
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
