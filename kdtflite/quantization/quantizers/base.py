"""The base of all quantizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = [
    "LONG_PAST",
    "NARROWEST",
    "START",
    "Quantizer",
    "compute_learned_gradient",
    "pass_gradient",
    "replace_zero",
]

START = 6.0  # half the width of a range that no data have set yet
# XNNPACK refuses a scale below 1e-8, as of an activation that is always zero; the plain kernels do
# not. 255 steps of 1e-6 are safely above.
NARROWEST = 255e-6
LONG_PAST = 1e6  # a calibrated range counts as this many batches


class Quantizer:
    """The base of all quantizers.

    Attributes:
        passes: Values pass unrounded, while a schedule delays rounding or ranges are calibrated.
        follows: A moving range follows the batches; a schedule may end that.
        observe: Called with the quantizer and an activation's values while they pass unrounded.
    """

    bits: int = 8
    passes: bool = False
    follows: bool = True
    observe: Callable[[Any, Any], None] | None = None

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, which are attributes of the same names."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


def pass_gradient(rounded: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[Any], tf.Tensor]:
    """Returns `rounded` with a gradient of 1 everywhere."""
    return tf.custom_gradient(lambda values: (rounded(values), lambda up: up))


def replace_zero(rounded: tf.Tensor, step: Any) -> tf.Tensor:
    """Returns rounded values with half a step in place of 0, without a gradient there.

    A root, a logarithm or a division takes these values, and code 0 stands for everything below
    half a step. The integer kernels answer it with the end of their output's range; in float the
    result would be infinite, and its gradient NaN.
    """
    return tf.where(tf.abs(rounded) < 0.5 * step, 0.5 * step, rounded)


def compute_learned_gradient(
    up: tf.Tensor, scaled: Any, step: Any, least: Any, most: Any, axes: list[int], size: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients for the values and for the step (arXiv 1902.08153, eq. 2 to 4)."""
    least, most = tf.cast(least, scaled.dtype), tf.cast(most, scaled.dtype)
    below, above = scaled < least, scaled > most
    inside = tf.logical_not(tf.logical_or(below, above))
    slope = tf.where(below, least, tf.where(above, most, tf.round(scaled) - scaled))
    # Values that are never positive have no code above 0.
    codes = tf.where(most > 0.0, most, -least)
    by_step = tf.reduce_sum(up * slope, axis=axes) * tf.math.rsqrt(size * codes)
    return tf.where(inside, up, tf.zeros_like(up)), tf.reshape(by_step, tf.shape(step))
