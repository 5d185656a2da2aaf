"""Quantize, distill and evaluate the file until it is accurate enough."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.arguments import check_arguments
from kdtflite.conversion.convert import convert
from kdtflite.data.representative import DEFAULT_SAMPLES
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.ways.fit import Fit
from kdtflite.errors import ConfigurationError, OutputExistsError
from kdtflite.evaluation.accuracy import collect, evaluate
from kdtflite.files import read_json, sha256, write_atomically, write_json
from kdtflite.lite.model import LiteModel
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.progress import say
from kdtflite.quantization.aware import quantize_aware
from kdtflite.results import Axes, Result, Table, as_plain, make_axes, make_table

__all__ = ["Round", "UntilAccurate", "until_accurate"]

_BATCH = 256


@dataclass(frozen=True)
class Round:
    """One round: trained, converted, evaluated.

    Attributes:
        number: 0 is the file before any training.
        accuracy: Share of the validation samples that the int8 file classifies correctly.
        bytes: Size of the file.
    """

    number: int
    accuracy: float
    bytes: int


@dataclass(frozen=True)
class UntilAccurate(Result):
    """The best file of all rounds.

    Attributes:
        lite: The file of the best round.
        student: The quantization-aware student, with that round's weights.
        rounds: Every round, in order.
        target_accuracy: The accuracy that was asked for.
    """

    lite: LiteModel
    student: keras.Model
    rounds: tuple[Round, ...]
    target_accuracy: float

    @property
    def best(self) -> Round:
        """The most accurate round; of equal ones the first."""
        return max(self.rounds, key=lambda each: (each.accuracy, -each.number))

    @property
    def reached(self) -> bool:
        """Whether the best file reaches the target accuracy."""
        return self.best.accuracy >= self.target_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Returns the rounds as plain values for JSON."""
        return {
            "target_accuracy": self.target_accuracy,
            "reached": self.reached,
            "best": self.best.number,
            "rounds": as_plain(self.rounds),
        }

    def to_table(self) -> Table:
        """Returns the rounds as a rich table."""
        rows = (
            (str(each.number), f"{each.accuracy:.4f}", f"{each.bytes:,}") for each in self.rounds
        )
        table = make_table(rows, numbers=("round", "accuracy", "bytes"))
        table.rows[self.rounds.index(self.best)].style = "bold"
        return table

    def summary(self) -> str:
        """Returns the best round and whether it reached the target, in one line."""
        reached = "reached" if self.reached else "not reached"
        return (
            f"The target accuracy of {self.target_accuracy:.4f} was {reached}: round "
            f"{self.best.number} has {self.best.accuracy:.4f}."
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the accuracy of each round's file, with the target as a dashed line.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        ax = make_axes(ax, 6, 4, xlabel="round", ylabel="validation accuracy of the file")
        numbers = [each.number for each in self.rounds]
        ax.plot(numbers, [each.accuracy for each in self.rounds], marker="o")
        ax.axhline(self.target_accuracy, linestyle="--", color="gray", label="target")
        ax.set_xticks(numbers)
        ax.legend()
        return ax


@check_arguments
def until_accurate(
    student: Any,
    teacher: Any,
    train: Any,
    validation: Any,
    *,
    target_accuracy: float,
    fit: Fit | None = None,
    patience: int = 3,
    max_rounds: int = 20,
    io_dtype: str | None = None,
    representative_data: Any = None,
    folder: str | os.PathLike[str] | None = None,
    **distiller: Any,
) -> UntilAccurate:
    """Trains a student quantization-aware, round by round, until its int8 file is accurate enough.

    The float student is made quantization-aware and its ranges are set from data; its file is
    round 0. Each round then distills for `fit.epochs` epochs, with an optimizer and schedules that
    start anew (warm restarts, Loshchilov & Hutter, arXiv 1608.03983), converts, and evaluates the
    file itself. It ends when a file reaches the target, or when `patience` rounds have brought no
    better file. The best round is returned, never a later and worse one.

    Report the accuracy on other samples than `validation`: the best of many rounds looks slightly
    better on the samples that selected it.

    Args:
        student: A trained float model, as `quantize_aware` takes it; it is not changed.
        teacher: A teacher, as `Distiller` takes it.
        train: A tf.data.Dataset of batches, a pair (x, y), a triple with sample weights, or an
            object with attributes x and y.
        validation: Samples and labels, as `kdtflite.evaluate` takes them.
        target_accuracy: The accuracy that the file has to reach, above 0 and up to 1.
        fit: How a round is compiled and fitted; by default one epoch with Adam.
        patience: Stop after this many rounds without a better file.
        max_rounds: At most this many rounds after round 0.
        io_dtype: "int8" or "uint8" inputs and outputs of the file.
        representative_data: Samples as the student takes them; by default from `train`.
        folder: Where to save every round's weights and file; called again, the job resumes after
            the last one, even with another target, patience or number of rounds.
        **distiller: Options of `Distiller`. With losses="auto", a resumed job chooses anew.

    Returns:
        The best file, and the accuracy and size of every round.

    Raises:
        ConfigurationError: A target, patience or number of rounds that makes no sense.
        OutputExistsError: `folder` holds another job.

    Example:
        >>> import kdtflite, numpy
        >>> import tf_keras as keras
        >>> keras.utils.set_random_seed(0)
        >>> x = numpy.random.default_rng(0).normal(size=(64, 2)).astype("float32")
        >>> y = (x[:, 0] > 0).astype(int)
        >>> student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> teacher = keras.models.clone_model(student)
        >>> result = kdtflite.until_accurate(
        ...     student, teacher, (x, y), (x, y), target_accuracy=0.01, losses=[]
        ... )
        >>> result.reached
        True
    """
    student = as_tf_keras(student)
    if not 0 < target_accuracy <= 1 or patience < 1 or max_rounds < 0:
        raise ConfigurationError(
            "Expected target_accuracy above 0 and up to 1, patience of one round or more, and no "
            f"negative max_rounds. Received: target_accuracy={target_accuracy}, "
            f"patience={patience}, max_rounds={max_rounds}."
        )
    fit = fit or Fit(epochs=1)
    preprocessing = distiller.get("student_preprocessing")
    if representative_data is None:
        representative_data = _make_representative(train, preprocessing)
    x, y = collect(validation)
    samples = (_preprocess(x, preprocessing), y)
    wrapped = quantize_aware(student, representative_data)
    taught_by = as_teacher(
        teacher,
        preprocessing=distiller.pop("teacher_preprocessing", None),
        outputs=distiller.pop("teacher_outputs", "auto"),
    )
    job = Distiller(wrapped, taught_by, **distiller)
    about: dict[str, Any] = {
        "epochs": fit.epochs,
        "batch_size": fit.batch_size,
        "seed": fit.seed,
        "io_dtype": io_dtype,
    }
    if folder is not None:
        about |= {"student": _compute_fingerprint(student), "teacher": taught_by.fingerprint()}
    kept = _RoundFolder(None if folder is None else Path(folder), about)
    rounds: list[Round] = []
    best: tuple[Round, LiteModel, list[np.ndarray]] | None = None
    for number in range(max_rounds + 1):
        lite = kept.load(number, job)
        before = lite is not None
        if lite is None:
            if number:
                fit.compile(job)
                fit.run(job, train, stage=number)
            lite = convert(wrapped, representative_data, "int8", io_dtype=io_dtype, progress=False)
            kept.save(number, job, lite)
        accuracy = evaluate(lite, samples, progress=False).accuracy
        rounds.append(Round(number, accuracy, len(lite.content)))
        if best is None or accuracy > best[0].accuracy:
            best = (rounds[-1], lite, wrapped.get_weights())
        say(
            f"Round {number}{' (from before)' if before else ''}: the int8 file's accuracy is "
            f"{accuracy:.4f}, the target {target_accuracy:.4f}; best {best[0].accuracy:.4f} "
            f"in round {best[0].number}; {len(lite.content):,} bytes"
        )
        if accuracy >= target_accuracy or number - best[0].number >= patience:
            break
    assert best is not None  # there is a round 0
    wrapped.set_weights(best[2])
    result = UntilAccurate(best[1], wrapped, tuple(rounds), float(target_accuracy))
    if not result.reached:
        say(
            f"The target accuracy was not reached: {best[0].accuracy:.4f} of "
            f"{target_accuracy:.4f} after {len(rounds) - 1} rounds."
        )
    return result


class _RoundFolder:
    """Rounds in a folder: weights, the losses' variables, and the file; written in that order."""

    def __init__(self, folder: Path | None, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about

    def load(self, number: int, job: Distiller) -> LiteModel | None:
        """Restores a round's weights and returns its file, or None if it is not finished."""
        if self.folder is None or not (record := self._path(number, "json")).is_file():
            return None
        done = read_json(record)
        weights, file = self._path(number, "h5"), self._path(number, "tflite")
        if not (
            isinstance(done, dict)
            and isinstance(done.get("about"), dict)
            and isinstance(done.get("sha256"), list)
            and weights.is_file()
            and file.is_file()
        ):
            say(f"{record} or a file beside it is damaged: round {number} is made again.")
            return None
        differ = [key for key in self.about if done["about"].get(key) != self.about[key]]
        if not differ and [sha256(weights), sha256(file)] != done["sha256"]:
            differ = ["the files"]
        if differ:
            raise OutputExistsError(
                f"{record} belongs to another job: {', '.join(differ)} differ. Choose another "
                "folder, or remove this one to start over."
            )
        job.student.load_weights(weights)
        if (adapters := self._path(number, "npz")).is_file():
            with np.load(adapters) as values:
                for variable, value in zip(job.loss_variables, values.values(), strict=True):
                    variable.assign(value)
        return LiteModel.load(file)

    def save(self, number: int, job: Distiller, lite: LiteModel) -> None:
        if self.folder is None:
            return
        weights, file = self._path(number, "h5"), self._path(number, "tflite")
        with write_atomically(weights, overwrite=True) as path:
            job.student.save_weights(path)
        if job.loss_variables:
            with write_atomically(self._path(number, "npz"), overwrite=True) as path:
                np.savez(path, *[variable.numpy() for variable in job.loss_variables])
        lite.save(file, overwrite=True)
        done = {"about": self.about, "sha256": [sha256(weights), sha256(file)]}
        write_json(self._path(number, "json"), done, overwrite=True)

    def _path(self, number: int, ending: str) -> Path:
        assert self.folder is not None
        return self.folder / f"round_{number:02d}.{ending}"


def _make_representative(train: Any, preprocessing: Callable[[Any], Any] | None) -> Any:
    """Returns representative data from the training samples, as the student takes them."""
    if preprocessing is None:
        return train
    if isinstance(train, tf.data.Dataset):
        batches = [keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in train.take(16)]
        return lambda: [preprocessing(batch) for batch in batches]
    x = train[0] if isinstance(train, tuple | list) else train.x
    count = len(tf.nest.flatten(x)[0])
    spread = np.linspace(0, count - 1, min(count, DEFAULT_SAMPLES)).astype(int)
    return _preprocess(
        tf.nest.map_structure(lambda part: np.asarray(part)[spread], x), preprocessing
    )


def _preprocess(x: Any, preprocessing: Callable[[Any], Any] | None) -> Any:
    """Returns samples as the student takes them."""
    if preprocessing is None:
        return x
    parts = [
        preprocessing(
            tf.nest.map_structure(lambda part, s=start: tf.constant(part[s : s + _BATCH]), x)
        )
        for start in range(0, len(tf.nest.flatten(x)[0]), _BATCH)
    ]
    return tf.nest.map_structure(lambda *each: np.concatenate(each), *parts)


def _compute_fingerprint(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()
