"""A job in stages, each a student that learns, which goes on after it was stopped."""

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
from kdtflite.distillation.ways.fit import Fit
from kdtflite.errors import ConfigurationError, OutputExistsError
from kdtflite.files import sha256, staged, write_json
from kdtflite.progress import say

__all__ = ["Stages", "Trained"]

History = dict[str, list[float]]
_COMPARED = (str, int, float, list, tuple, DistillationLoss, Schedule)


@dataclass(frozen=True)
class Trained:
    """What a job in stages trained.

    Attributes:
        models: The students of all stages, in order.
        histories: What `fit` recorded of each, values by name.
    """

    models: tuple[keras.Model, ...]
    histories: tuple[History, ...]

    @property
    def student(self) -> keras.Model:
        """The last one."""
        return self.models[-1]


class Stages:
    """Trains students one after another, and keeps each in a folder when it is finished.

    Args:
        title: Name of the job, for lines of progress.
        fit: How each is compiled and fitted.
        options: Options of `Distiller`; `losses` may be a function that makes them.
        folder: Where finished stages are kept: their weights (.h5) and history. None keeps none.

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

    def distil(
        self, student: keras.Model, teacher: Teacher, train: Any, *, number: int, count: int
    ) -> History:
        """Trains `student` with `teacher`, or loads what was trained before.

        Args:
            student: A tf_keras model; it is trained in place.
            teacher: What it learns from.
            train: As `Fit.run` takes it.
            number: The stage's number, from 1.
            count: How many stages there are.

        Raises:
            OutputExistsError: The folder holds this stage of another job.
        """
        named = f"{self.title}, stage {number} of {count}: {student.name!r}"
        about = {
            "student": student.name,
            "shapes": [list(weight.shape) for weight in student.weights],
            "teacher": "" if self.folder is None else teacher.fingerprint(),
            "epochs": self.fit.epochs,
            "batch size": self.fit.batch_size,
            "seed": self.fit.seed,
            **({} if self.folder is None else self._learning(train)),
        }

        def work() -> History:
            say(f"{named} learns from {teacher.name!r}")
            options = dict(self.options)
            if _makes(options.get("losses")):
                options["losses"] = options["losses"]()
            distiller = Distiller(student, teacher, **options)
            self.fit.compile(distiller)
            return self.fit.run(distiller, train, stage=number)

        history = self._kept(student, f"{number:02d}_{_file_name(student.name)}", about, work)
        last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.items() if values)
        say(f"{named} is trained: {last}")
        return history

    def _learning(self, train: Any) -> dict[str, Any]:
        """What a stage learns by and from, as far as it can be told beforehand."""
        losses: Any = self.options.get("losses")
        weights = [self.options.get(name) for name in ("hard_label_weight", "loss_weights")]
        return {
            "losses": _as_json(losses() if _makes(losses) else losses),
            "weights": _as_json(weights),
            "data": _fingerprint(train),
        }

    def _kept(
        self, model: keras.Model, name: str, about: dict[str, Any], work: Callable[[], History]
    ) -> History:
        """Does the work, or puts what it gave before into `model`."""
        if self.folder is None:
            return work()
        weights, record = self.folder / f"{name}.h5", self.folder / f"{name}.json"
        if record.is_file():  # written last
            done = json.loads(record.read_text())
            differ = [key for key in about if done["about"].get(key) != about[key]]
            if differ or sha256(weights) != done["sha256"]:
                raise OutputExistsError(
                    f"{record} is of another job: {', '.join(differ) or 'the weights'} differ. "
                    "Choose another folder, or remove this one to start over."
                )
            model.load_weights(weights)
            say(f"{self.title}: {model.name!r} was trained before, from {weights}")
            return done["history"]
        history = work()
        with staged(weights, overwrite=True) as path:
            model.save_weights(path)
        done = {"about": about, "sha256": sha256(weights), "history": history}
        write_json(record, done)
        return history


def _check_losses(losses: Any) -> None:
    if _makes(losses):
        return
    sticky = [
        loss.name
        for loss in (losses if isinstance(losses, list | tuple) else ())
        if isinstance(loss, DistillationLoss) and not isinstance(loss, LogitsLoss)
    ]
    if sticky:
        raise ConfigurationError(
            f"The losses {', '.join(sticky)} keep what they train for one student. Expected a "
            "function that makes the losses anew for each. Pass losses=lambda: [...]."
        )


def _as_json(options: Any) -> Any:
    """Returns losses, schedules and numbers as what json reads back, to be compared."""

    def plain(value: Any) -> Any:
        known = (
            value.get_config() if hasattr(value, "get_config") else getattr(value, "__dict__", None)
        )
        if known is None:  # a number of NumPy's
            return repr(value)
        simple = {
            name: entry
            for name, entry in known.items()
            if not name.startswith("_") and (entry is None or isinstance(entry, _COMPARED))
        }
        return {"is": type(value).__name__, **simple}

    return json.loads(json.dumps(options, default=plain))


def _fingerprint(train: Any) -> str:
    """Returns a digest of arrays; of a tf.data.Dataset nothing: it would have to be read."""
    parts = train if isinstance(train, tuple | list) else None
    if parts is None and hasattr(train, "x") and hasattr(train, "y"):
        parts = (train.x, train.y)
    if parts is None:
        return ""
    return ArrayData([part for part in parts if part is not None]).fingerprint


def _makes(losses: Any) -> bool:
    """Whether `losses` is a function that makes losses; a loss can be called as well."""
    return callable(losses) and not isinstance(losses, DistillationLoss)


def _file_name(name: str) -> str:
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    # Two names may come out alike.
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
