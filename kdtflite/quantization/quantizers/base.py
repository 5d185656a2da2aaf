"""What all quantizers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["LEAST", "LONG_PAST", "START", "Quantizer", "learned_gradient", "straight_through"]

START = 6.0  # half the width of a range that no data have set yet
LEAST = 255e-6  # XNNPACK refuses a scale below 1e-8; 255 steps of 1e-6 are safely above
LONG_PAST = 1e6  # batches that a calibrated range counts as


class Quantizer:
    """What all quantizers share.

    Attributes:
        passes: Let values pass unrounded: while a schedule delays rounding, or ranges are sought.
        follows: Let a moving range follow the batches; a schedule may end that.
        observe: Called with the quantizer and an activation's values, where it passes them on.
    """

    bits: int = 8
    passes: bool = False
    follows: bool = True
    observe: Callable[[Any, Any], None] | None = None

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        raise NotImplementedError


def straight_through(rounded: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[Any], tf.Tensor]:
    """Returns the function with a gradient of 1 everywhere."""
    return tf.custom_gradient(lambda values: (rounded(values), lambda up: up))


def learned_gradient(
    up: tf.Tensor, scaled: Any, step: Any, least: Any, most: Any, axes: list[int], size: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients by the values and by the step (arXiv 1902.08153, equations 2 to 4)."""
    least, most = tf.cast(least, scaled.dtype), tf.cast(most, scaled.dtype)
    below, above = scaled < least, scaled > most
    inside = tf.logical_not(tf.logical_or(below, above))
    slope = tf.where(below, least, tf.where(above, most, tf.round(scaled) - scaled))
    by_step = tf.reduce_sum(up * slope, axis=axes) * tf.math.rsqrt(size * most)
    return tf.where(inside, up, tf.zeros_like(up)), tf.reshape(by_step, tf.shape(step))
