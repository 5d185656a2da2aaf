"""Checks of the numbers among a loss's parameters."""

from __future__ import annotations

import math

from kdtflite.distillation.schedules import Schedule
from kdtflite.errors import ConfigurationError

__all__ = ["check_fraction", "check_not_negative", "check_temperature", "get_ends"]


def check_temperature(temperature: float | Schedule) -> float | Schedule:
    """Returns a positive, finite temperature, or a schedule between two.

    Raises:
        ConfigurationError: It is something else.
    """
    if not all(math.isfinite(end) and end > 0 for end in get_ends(temperature)):
        raise ConfigurationError(
            "Expected a positive, finite temperature. Received: temperature="
            f"{' to '.join(map(str, get_ends(temperature)))}."
        )
    return temperature if isinstance(temperature, Schedule) else float(temperature)


def check_fraction(name: str, value: float | Schedule) -> float | Schedule:
    """Returns a number from 0 to 1, or a schedule between two.

    Raises:
        ConfigurationError: It is outside this range.
    """
    if not all(0 <= end <= 1 for end in get_ends(value)):
        received = " to ".join(map(str, get_ends(value)))
        raise ConfigurationError(f"Expected {name} from 0 to 1. Received: {name}={received}.")
    return value if isinstance(value, Schedule) else float(value)


def check_not_negative(name: str, value: float) -> float:
    """Returns a finite number that is not negative.

    Raises:
        ConfigurationError: It is something else.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ConfigurationError(
            f"Expected a finite {name} that is not negative. Received: {name}={value}."
        )
    return float(value)


def get_ends(value: float | Schedule) -> tuple[float, ...]:
    """Returns the first and the last value of a schedule, or a number alone."""
    return (value.at(0, 2), value.at(1, 2)) if isinstance(value, Schedule) else (float(value),)
