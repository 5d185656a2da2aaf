"""The tasks by name."""

from __future__ import annotations

from kdtflite.errors import ConfigurationError, choose
from kdtflite.tasks.base import Task
from kdtflite.tasks.multilabel import MultiLabel
from kdtflite.tasks.regression import Regression
from kdtflite.tasks.segmentation import Segmentation

__all__ = ["TASKS", "get_task"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (MultiLabel, Regression, Segmentation)}
"""Every task but classification."""


def get_task(name: str, *, ignore_class: int | None = None) -> Task | None:
    """Returns a task, or None for "classification", which `evaluate` measures itself.

    Args:
        name: "classification", or one of `TASKS`.
        ignore_class: For segmentation, the label of pixels that count nowhere.

    Raises:
        ConfigurationError: There is no such task, or it ignores no class.

    Example:
        >>> get_task("regression").read_labels([1, 2]).dtype
        dtype('float64')
    """
    choose(name, ("classification", *TASKS), what="task")
    if name == Segmentation.name:
        return Segmentation(ignore_class)
    if ignore_class is not None:
        raise ConfigurationError(
            f"Expected ignore_class= with the task 'segmentation'. Received: the task {name!r}."
        )
    return TASKS[name]() if name in TASKS else None
