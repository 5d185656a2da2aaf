"""The temperature that softens a distribution: what one may be."""

from __future__ import annotations

import math

from kdtflite.distillation.losses.checks import ends
from kdtflite.distillation.schedules import Schedule
from kdtflite.errors import ConfigurationError

__all__ = ["check_temperature"]


def check_temperature(temperature: float | Schedule) -> float | Schedule:
    """Returns a temperature that can be used.

    Raises:
        ConfigurationError: It is no positive, finite number, nor a schedule of such.
    """
    if not all(math.isfinite(end) and end > 0 for end in ends(temperature)):
        raise ConfigurationError(
            "Expected a positive, finite temperature. Received: temperature="
            f"{' to '.join(map(str, ends(temperature)))}."
        )
    return temperature if isinstance(temperature, Schedule) else float(temperature)
