"""Holds a task that was read off the student's last layer against the loss and the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.distillation.losses.hard_labels import HardLabels
from kdtflite.distillation.outputs import Outputs, Task
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["check_guess_by_labels", "check_guess_by_loss"]

_REGRESSION_LOSSES = (
    "cosine_similarity",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
)
_LABELS_READ = 4096  # enough to tell classes from values
_SLACK = 1e-3  # the error of a sum of rounded probabilities
_HOW = {
    "multiclass": "classes",
    "multilabel": "yes or no",
    "regression": "values",
}


def check_guess_by_loss(
    hard_labels: HardLabels, outputs: Outputs, task: Task, *, how_to_say: str = "task={!r}"
) -> None:
    """Raises ConfigurationError if the loss compares values and the task was guessed to be another.

    Args:
        hard_labels: The loss on the labels.
        outputs: What the student's output is.
        task: The guess.
        how_to_say: The constructor's argument by which to state another task.
    """
    if task == "regression" or outputs != "logits":
        return
    if hard_labels.function in _REGRESSION_LOSSES:
        raise ConfigurationError(
            f"The loss {hard_labels.describe()} compares values, but the student's last layer was "
            f"taken for {_HOW[task]}. {_advise('regression', task, how_to_say)}"
        )


def check_guess_by_labels(
    labels: Any,
    output_shape: tuple[int | None, ...],
    task: Task,
    *,
    loss: HardLabels | None = None,
    name: str = "",
    how_to_say: str = "task={!r}",
) -> None:
    """Raises DataError if the labels cannot be those of a task that was guessed.

    Only values that are there are read, at most the first 4,096 rows: not those of a
    tf.data.Dataset.

    Args:
        labels: Arrays or tensors; everything else is taken as it is.
        output_shape: Shape of the student's output, (None, ..., classes).
        task: The guess.
        loss: The loss on the labels.
        name: The student or its output, where there are several.
        how_to_say: The constructor's argument by which to state another task.
    """
    values = _read_values(labels)
    if values is None or task == "regression":
        return
    ignored = None if loss is None else loss.arguments.get("ignore_class")
    found = (_contradict_classes if task == "multiclass" else _contradict_yes_or_no)(
        values, output_shape, ignored
    )
    if found is None:
        return
    what, other = found
    raise DataError(
        f"The student's last layer was taken for {_HOW[task]}, but the labels"
        f"{f' of {name!r}' if name else ''} are {what}. {_advise(other, task, how_to_say)}"
    )


def _contradict_classes(
    values: NDArray[Any], output_shape: tuple[int | None, ...], ignored: Any
) -> tuple[str, Task] | None:
    """Returns what else labels are than classes, and the task that they are of; None if classes."""
    if values.ndim == len(output_shape) and values.shape[-1] == output_shape[-1] != 1:
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        rows = rows[~(rows == ignored).all(axis=1)] if ignored is not None else rows
        outside = (rows < 0) | (rows > 1)
        if outside.any():
            return f"rows of values such as {rows[outside][0]:.4g}", "regression"
        sums = rows.sum(axis=1)
        wrong = (np.abs(sums - 1) > _SLACK) & (sums != 0)
        if wrong.any():
            return f"rows that add up to {sums[wrong][0]:.4g}, not to 1", "multilabel"
    elif values.dtype.kind == "f" and values.ndim in (len(output_shape) - 1, len(output_shape)):
        broken = values[(values != np.trunc(values)) & (values != ignored)]
        if broken.size:
            return f"values such as {broken[0]:.4g}", "regression"
    return None


def _contradict_yes_or_no(
    values: NDArray[Any], output_shape: tuple[int | None, ...], ignored: Any
) -> tuple[str, Task] | None:
    """Returns what else labels are than yes or no, or a probability of yes; None if they are."""
    del output_shape
    known = values[values != ignored] if ignored is not None else values
    outside = known[(known < 0) | (known > 1)]
    if outside.size and not np.isin(outside, (-1, 1)).all():  # a hinge takes -1 and 1
        return f"values such as {float(outside[0]):.4g}", "regression"
    return None


def _read_values(labels: Any) -> NDArray[Any] | None:
    """Returns the first labels as numbers, or None if they cannot be read."""
    if not (hasattr(labels, "shape") and hasattr(labels, "__array__")):
        return None
    if not labels.shape:
        return None
    values = np.asarray(labels[:_LABELS_READ])
    return values if values.dtype.kind in "biuf" and values.size else None


def _advise(other: Task, guess: Task, how_to_say: str) -> str:
    return (
        f"Pass {how_to_say.format(other)} to the constructor, or {how_to_say.format(guess)} if "
        "they are right."
    )
