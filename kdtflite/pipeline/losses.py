"""The losses, schedules and mixing that a recipe names."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kdtflite.distillation import losses, schedules
from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.distillation.mixing import CutMix, Mixing, MixUp
from kdtflite.distillation.objective import resolve_weights
from kdtflite.distillation.outputs import Task
from kdtflite.distillation.schedules import Schedule
from kdtflite.errors import ConfigurationError, choose

__all__ = ["loss_names", "make_losses", "make_mixing", "make_number"]

_TASK: Task = "multiclass"  # of every recipe
_OLD_NAMES = {"relational": "relational_kd"}  # what logs called it once
_SCHEDULES: dict[str, type[Schedule]] = {
    "constant": schedules.Constant,
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
    "gradual_soft_loss_reduction": schedules.GradualSoftLossReduction,
}


def make_losses(
    entries: Sequence[Mapping[str, Any]], hard_label_weight: Any = None
) -> dict[str, Any]:
    """Returns the arguments of `Distiller` for losses as a recipe lists them.

    Args:
        entries: Each with `name` (one of `loss_names`), perhaps `weight`, and parameters of the
            loss. A parameter may be a schedule, or another such entry where a loss wraps one.
        hard_label_weight: A number, a schedule as a recipe writes it, or None.

    Raises:
        ConfigurationError: No such loss or parameter, or a value that it cannot take.
    """
    made: list[DistillationLoss] = []
    named: Counter[str] = Counter()
    for entry in entries:
        loss = _make_loss({key: value for key, value in entry.items() if key != "weight"})
        named[loss.name] += 1
        if (number := named[loss.name]) > 1:
            loss.name += f"_{number}"
        made.append(loss)
    hard = make_number(hard_label_weight)
    # The Distiller's own weights fill the gaps.
    _, own = resolve_weights(made, hard, None, _TASK)
    weights = [
        make_number(entry["weight"]) if entry.get("weight") is not None else weight
        for entry, weight in zip(entries, own, strict=True)
    ]
    resolve_weights(made, hard, weights, _TASK)  # refuses invalid weights
    return {"losses": made, "hard_label_weight": hard, "loss_weights": weights}


def make_number(value: Any) -> Any:
    """Returns a number as it is, and `{schedule: cosine, start: 8, end: 1}` as a Schedule.

    Raises:
        ConfigurationError: Neither, or a schedule that does not exist or lacks an argument.
    """
    if not isinstance(value, Mapping):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigurationError(
                "Expected a number, or a schedule such as {schedule: linear, start: 4, end: 1}. "
                f"Received: {value!r}."
            )
        return value
    arguments = dict(value)
    name = choose(str(arguments.pop("schedule", None)), _SCHEDULES, what="schedule")
    return _make(_SCHEDULES[name], arguments, f"schedule {name}")


def make_mixing(recipe: Mapping[str, float]) -> Mixing:
    """Returns MixUp or CutMix for `{mixup: alpha}` or `{cutmix: alpha}`."""
    if recipe.get("mixup") is not None:
        return MixUp(recipe["mixup"])
    return CutMix(recipe["cutmix"])


@functools.cache
def loss_names() -> dict[str, type[DistillationLoss]]:
    """Returns every loss by its `default_name`, the word that recipes and logs have for it."""
    found: dict[str, type[DistillationLoss]] = {}
    for public in dir(losses):
        one = getattr(losses, public)
        if isinstance(one, type) and issubclass(one, DistillationLoss) and _is_usable(one):
            found[one.default_name] = one
    return found


def _is_usable(one: type[DistillationLoss]) -> bool:
    return not inspect.isabstract(one) and _TASK in one.tasks


def _make_loss(entry: Mapping[str, Any]) -> DistillationLoss:
    arguments = dict(entry)
    name = str(arguments.pop("name", None))
    name = choose(_OLD_NAMES.get(name, name), loss_names(), what="loss")
    return _make(loss_names()[name], arguments, f"loss {name}")


def _make(kind: type[Any], arguments: Mapping[str, Any], what: str) -> Any:
    """Makes an object from a recipe's values, after a check of the parameters' names."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if name != "name"
    }
    if unknown := sorted(set(arguments) - set(parameters)):
        raise ConfigurationError(
            f"The {what} has no {', '.join(unknown)}. Expected: {', '.join(parameters) or 'none'}."
        )
    required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise ConfigurationError(f"The {what} needs {', '.join(missing)}.")
    try:
        return kind(**{name: _parse(value) for name, value in arguments.items()})
    except (TypeError, ValueError) as error:  # a word where a number is wanted
        raise ConfigurationError(f"The {what} cannot be made: {error}.") from error


def _parse(value: Any) -> Any:
    if isinstance(value, Mapping) and "schedule" in value:
        return make_number(value)
    if isinstance(value, Mapping) and "name" in value:
        return _make_loss(value)
    return value
