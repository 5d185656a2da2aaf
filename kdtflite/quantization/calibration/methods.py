"""The calibration methods by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, choose
from kdtflite.quantization.calibration.entropy import Entropy
from kdtflite.quantization.calibration.mean_std import MeanStd
from kdtflite.quantization.calibration.min_max import MinMax
from kdtflite.quantization.calibration.moving_average import MovingAverage
from kdtflite.quantization.calibration.mse import MSE
from kdtflite.quantization.calibration.observer import Observer
from kdtflite.quantization.calibration.percentile import Percentile

__all__ = ["CALIBRATIONS", "get_calibration"]

CALIBRATIONS: dict[str, type[Observer]] = {
    "entropy": Entropy,
    "mean_std": MeanStd,
    "min_max": MinMax,
    "moving_average": MovingAverage,
    "mse": MSE,
    "percentile": Percentile,
}


@check_arguments
def get_calibration(name: str, **options: Any) -> Callable[..., Observer]:
    """Returns a function that makes the observers of a method, one for each tensor.

    Args:
        name: One of `CALIBRATIONS`.
        options: The options of the method, and `symmetric` and `bits`. A call of the returned
            function may override them.

    Raises:
        ConfigurationError: There is no such method or option, or the option cannot have the value.

    Example:
        >>> make_observer = get_calibration("percentile", percentile=90)
        >>> observer = make_observer(symmetric=True)
        >>> observer.update([-1.0, 0.5, 2.0])
        >>> low, high = observer.range()
        >>> -low == high < 2.0
        True
    """
    method = CALIBRATIONS[choose(name, CALIBRATIONS, what="calibration")]
    known = list(inspect.signature(method).parameters)
    for option in options:
        if option not in known:
            raise ConfigurationError(
                f"The calibration {name!r} has no option {option!r}. Expected: {', '.join(known)}."
            )
    method(**options)  # a wrong value is reported now, not during the calibration pass
    return functools.partial(method, **options)
