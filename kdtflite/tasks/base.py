"""The base of a task: how it reads labels and outputs, and what it measures."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.results import Result

__all__ = [
    "Answers",
    "Task",
    "find_threshold",
    "find_worst",
    "format_score",
    "list_names",
    "name_columns",
    "read_finite",
]

_WORST = 5
_LISTED = 10


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered to labeled samples.

    Attributes:
        outputs: Real values, shape (samples, ...), float32, finite.
        labels: As the task read them.
        model: What answered, for people.
        kind: "logits", "probabilities" or "" if unknown.
        kind_from: What the kind was read from.
        step: The step between two values of a quantized output; None for float.
        limits: The least and the greatest value that a quantized output holds; None for float.
        names: Names of the outputs' classes or columns; empty if they have none.
    """

    outputs: np.ndarray
    labels: np.ndarray
    model: str
    kind: str = ""
    kind_from: str = ""
    step: float | None = None
    limits: tuple[float, float] | None = None
    names: Sequence[str] = field(default=())


class Task(abc.ABC):
    """What the outputs of a model mean.

    A task of your own is a subclass with these two methods, in one file; `docs/how_to.md` shows
    one.
    """

    name: ClassVar[str]
    """The word for it in `evaluate(task=)` and `kdtflite evaluate --task`."""

    @abc.abstractmethod
    def read_labels(self, y: Any) -> np.ndarray:
        """Returns labels in the task's form.

        Args:
            y: Labels as the user has them, shape (samples, ...).

        Raises:
            DataError: They cannot be labels of this task.
        """

    @abc.abstractmethod
    def measure(self, answers: Answers) -> Result:
        """Returns the figures of a model.

        Raises:
            DataError: Labels that the outputs cannot answer.
            ShapeMismatchError: Outputs of another form.
        """


def read_finite(y: Any, what: str) -> np.ndarray:
    """Returns labels as an array of numbers without NaN or infinity."""
    labels = np.asarray(y)
    if labels.dtype.kind not in "biuf" or not labels.size or not labels.ndim:
        raise DataError(
            f"Expected {what}, an array of numbers. Received: dtype {labels.dtype}, shape "
            f"{labels.shape}."
        )
    wrong = np.flatnonzero(~np.isfinite(labels.reshape(len(labels), -1)).all(axis=1))
    if wrong.size:
        raise DataError(
            f"Expected finite labels. Received: NaN or infinity in {wrong.size} samples, first in "
            f"sample {wrong[0]}. Leave these samples out."
        )
    return labels


def name_columns(names: Sequence[str], count: int, what: str) -> tuple[str, ...]:
    """Returns the names of `count` columns, by default their numbers.

    Raises:
        ShapeMismatchError: Another number of names.
    """
    if not len(names):
        return tuple(str(number) for number in range(count))
    if isinstance(names, str) or len(names) != count:
        raise ShapeMismatchError(
            f"Expected {count} names in `labels`, one per {what}. Received: {names!r}."
        )
    return tuple(map(str, names))


def find_worst(errors: np.ndarray) -> tuple[int, ...]:
    """Returns the samples with the largest errors, the worst first; equal ones by number."""
    return tuple(int(i) for i in np.argsort(-errors, kind="stable")[:_WORST])


def find_threshold(outputs: np.ndarray, answers: Answers) -> tuple[np.float32, str, str]:
    """Returns the output above which the answer is yes, its kind and what that was read from.

    Outputs of an unknown kind are probabilities if every value could be one.
    """
    kind, source = answers.kind, answers.kind_from
    if not kind:
        could_be = outputs.min() >= 0 and outputs.max() <= 1
        kind, source = "probabilities" if could_be else "logits", "guessed from the values"
    return np.float32(0.5 if kind == "probabilities" else 0.0), kind, source


def format_score(value: float | None) -> str:
    """Returns a score with four digits; a dash for an unknown one."""
    return "–" if value is None else f"{value:.4f}"


def list_names(names: Sequence[str]) -> str:
    """Returns the first ten names, and how many more there are."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
