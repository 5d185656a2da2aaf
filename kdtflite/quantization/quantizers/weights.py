"""Fake quantization of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.calibration import weight_range
from kdtflite.quantization.quantizers.base import (
    NARROWEST,
    Quantizer,
    compute_learned_gradient,
    pass_gradient,
)

__all__ = ["LearnedWeightQuantizer", "WeightQuantizer"]

_SMALLEST = NARROWEST / 127  # of all scales


class WeightQuantizer(Quantizer):
    """Symmetric fake quantization of a weight to -127..127, as the int8 kernels hold it.

        scale = max |w| / 127,  w_hat = scale · clamp(round(w / scale))

    (Jacob et al., arXiv 1712.05877.) The range is always computed from the weight: nothing is
    stored that could be out of date. The gradient passes straight through.

    Args:
        axes: The axes that have one scale per position, counted from the end; empty for one scale
            in all.
        bits: Bits per code.
    """

    def __init__(self, axes: tuple[int, ...] = (), bits: int = 8) -> None:
        self.axes = tuple(axes)
        self.bits = bits

    def build(self, weight: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds to `layer` the variables of the quantizer of a weight; returns them by name."""
        del weight, name, layer
        return {}

    def set_from(self, weight: Any, variables: dict[str, Any]) -> None:
        """Sets the variables from the weight's values."""
        del weight, variables

    def __call__(self, weight: Any, variables: dict[str, Any] | None = None) -> tf.Tensor:
        """Returns the weight on its grid, in its own shape."""
        weight = tf.convert_to_tensor(weight)
        if self.passes:
            return weight
        if not self.axes:
            return self._round(weight, _find_largest(weight, None), variables)
        # The operation takes the last axis only; the axes with scales are joined and moved there.
        rank = len(weight.shape)
        kept = [axis % rank for axis in self.axes]
        order = [axis for axis in range(rank) if axis not in kept] + kept
        moved = weight if order == list(range(rank)) else tf.transpose(weight, order)
        channels = int(np.prod([weight.shape[axis] for axis in kept]))
        flat = tf.reshape(moved, [-1, 1, 1, channels] if len(kept) > 1 else moved.shape)
        rounded = self._round(
            flat, _find_largest(flat, list(range(len(flat.shape) - 1))), variables
        )
        rounded = tf.reshape(rounded, moved.shape)
        if moved is weight:
            return rounded
        return tf.transpose(rounded, [order.index(axis) for axis in range(rank)])

    def _round(self, weight: tf.Tensor, end: tf.Tensor, variables: Any) -> tf.Tensor:
        del variables
        fake = _choose_operation(end)
        # Nothing is clipped.
        return pass_gradient(
            lambda values: fake(values, -end, end, num_bits=self.bits, narrow_range=True)
        )(weight)


class LearnedWeightQuantizer(WeightQuantizer):
    """As `WeightQuantizer`, with a scale that is learned (LSQ, Esser et al., arXiv 1902.08153).

        w_hat = s · clamp(round(w / s), -n, n),  n = 127, or 7 for four bits
        ∂w_hat/∂s = round(w / s) - w / s inside, ±n outside, times 1 / sqrt(n · size)

    With eight bits the scale starts at the one of `WeightQuantizer`; with fewer, at the one with
    the least squared error, which clips a few weights for the sake of all others.
    """

    def build(self, weight: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds the scale, one per channel or one in all."""
        channels = [weight.shape[axis] for axis in self.axes]
        return {
            "step": layer.add_weight(
                f"{name}_step",
                shape=(int(np.prod(channels)),) if channels else (),
                initializer="ones",
                trainable=True,
            )
        }

    def set_from(self, weight: Any, variables: dict[str, Any]) -> None:
        """Sets the scale from which training starts."""
        method = "min_max" if self.bits == 8 else "mse"
        end = weight_range(weight.numpy(), self.axes or None, method, bits=self.bits)
        step = np.maximum(end / (2 ** (self.bits - 1) - 1), _SMALLEST)
        variables["step"].assign(step.reshape(variables["step"].shape))

    def _round(self, weight: tf.Tensor, end: tf.Tensor, variables: Any) -> tf.Tensor:
        levels = 2 ** (self.bits - 1) - 1
        fake, bits = _choose_operation(end), self.bits
        axes = list(range(len(weight.shape) - len(end.shape)))
        size = float(np.prod([weight.shape[axis] for axis in axes]))

        @tf.custom_gradient
        def fake_quantize(values: tf.Tensor, step: tf.Tensor) -> Any:
            def gradient(up: tf.Tensor) -> Any:
                return compute_learned_gradient(
                    up, values / step, step, -levels, levels, axes, size
                )

            if bits < 8:
                # The converter rounds to eight bits whatever it knows as fake quantization. It
                # computes this instead, and finds constants with few levels.
                codes = tf.clip_by_value(tf.round(values / step), -levels, levels)
                return codes * step, gradient
            top = step * levels
            return fake(values, -top, top, num_bits=bits, narrow_range=True), gradient

        return fake_quantize(weight, tf.maximum(variables["step"], _SMALLEST))


def _find_largest(weight: tf.Tensor, axes: list[int] | None) -> tf.Tensor:
    end = tf.reduce_max(tf.abs(tf.stop_gradient(weight)), axis=axes)
    # A weight of zeros has no range; zero is on every grid, so any range will do.
    return tf.where(end > 0.0, end, tf.ones_like(end))


def _choose_operation(end: tf.Tensor) -> Any:
    if len(end.shape):
        return tf.quantization.fake_quant_with_min_max_vars_per_channel
    return tf.quantization.fake_quant_with_min_max_vars
