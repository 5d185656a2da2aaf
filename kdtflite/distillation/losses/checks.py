"""What the numbers among a loss's parameters may be."""

from __future__ import annotations

import math

from kdtflite.distillation.schedules import Schedule
from kdtflite.errors import ConfigurationError

__all__ = ["check_not_negative", "check_share", "ends"]


def check_share(name: str, value: float | Schedule) -> float | Schedule:
    """Returns a number from 0 to 1, or a schedule between such.

    Raises:
        ConfigurationError: It is outside.
    """
    if not all(0 <= end <= 1 for end in ends(value)):
        received = " to ".join(map(str, ends(value)))
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


def ends(value: float | Schedule) -> tuple[float, ...]:
    """Returns a number, or the first and the last value of a schedule."""
    return (value.at(0, 2), value.at(1, 2)) if isinstance(value, Schedule) else (float(value),)
