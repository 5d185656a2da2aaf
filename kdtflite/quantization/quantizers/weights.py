"""Fake quantization of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.quantizers.base import (
    LEAST,
    Quantizer,
    learned_gradient,
    straight_through,
)

__all__ = ["LearnedWeightQuantizer", "WeightQuantizer"]


class WeightQuantizer(Quantizer):
    """Symmetric fake quantization of a weight to -127..127, as the int8 kernels hold it.

        scale = max |w| / 127,  w_hat = scale · clamp(round(w / scale))

    (Jacob et al., arXiv 1712.05877.) The range is always the weight's own: nothing is stored that
    could be out of date. The gradient passes straight through.

    Args:
        axes: The axes that have a scale for each of their positions, counted from the end; none
            for one scale in all.
        bits: Width of a code.
    """

    def __init__(self, axes: tuple[int, ...] = (), bits: int = 8) -> None:
        self.axes = tuple(axes)
        self.bits = bits

    def build(self, weight: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds the variables that belong to a weight to `layer`; returns them by name."""
        del weight, name, layer
        return {}

    def set_from(self, weight: Any, variables: dict[str, Any]) -> None:
        """Sets the variables anew from the weight's values."""
        del weight, variables

    def __call__(self, weight: Any, variables: dict[str, Any] | None = None) -> tf.Tensor:
        """Returns the weight on its grid, in its own shape."""
        weight = tf.convert_to_tensor(weight)
        if self.passes:
            return weight
        if not self.axes:
            return self._rounded(weight, _largest(weight, None), variables)
        # The operation knows the last axis only; the axes with scales are brought there as one.
        rank = len(weight.shape)
        kept = [axis % rank for axis in self.axes]
        order = [axis for axis in range(rank) if axis not in kept] + kept
        moved = weight if order == list(range(rank)) else tf.transpose(weight, order)
        channels = int(np.prod([weight.shape[axis] for axis in kept]))
        flat = tf.reshape(moved, [-1, 1, 1, channels] if len(kept) > 1 else moved.shape)
        rounded = self._rounded(flat, _largest(flat, list(range(len(flat.shape) - 1))), variables)
        rounded = tf.reshape(rounded, moved.shape)
        if moved is weight:
            return rounded
        return tf.transpose(rounded, [order.index(axis) for axis in range(rank)])

    def _rounded(self, weight: tf.Tensor, end: tf.Tensor, variables: Any) -> tf.Tensor:
        del variables
        fake = _operation(end)
        # Nothing is clipped.
        return straight_through(
            lambda values: fake(values, -end, end, num_bits=self.bits, narrow_range=True)
        )(weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"axes": list(self.axes), "bits": self.bits}


class LearnedWeightQuantizer(WeightQuantizer):
    """As `WeightQuantizer`, with a scale that is learned (LSQ, Esser et al., arXiv 1902.08153).

        w_hat = s · clamp(round(w / s), -127, 127)
        ∂w_hat/∂s = round(w / s) - w / s inside, ±127 outside, times 1 / sqrt(127 · size)

    The scale starts at the weight's own.
    """

    def build(self, weight: Any, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds the scale, one for each channel or one in all."""
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
        """Sets the scale so that the largest weight has the largest code."""
        kept = [axis % len(weight.shape) for axis in self.axes]
        others = tuple(axis for axis in range(len(weight.shape)) if axis not in kept)
        end = np.abs(weight.numpy()).max(axis=others).ravel()
        step = np.maximum(end, LEAST) / (2 ** (self.bits - 1) - 1)
        variables["step"].assign(step.reshape(variables["step"].shape))

    def _rounded(self, weight: tf.Tensor, end: tf.Tensor, variables: Any) -> tf.Tensor:
        levels = 2 ** (self.bits - 1) - 1
        fake, bits = _operation(end), self.bits
        axes = list(range(len(weight.shape) - len(end.shape)))
        size = float(np.prod([weight.shape[axis] for axis in axes]))

        @tf.custom_gradient
        def rounded(values: tf.Tensor, step: tf.Tensor) -> Any:
            top = step * levels

            def gradient(up: tf.Tensor) -> Any:
                return learned_gradient(up, values / step, step, -levels, levels, axes, size)

            return fake(values, -top, top, num_bits=bits, narrow_range=True), gradient

        return rounded(weight, tf.maximum(variables["step"], LEAST / levels))


def _largest(weight: tf.Tensor, axes: list[int] | None) -> tf.Tensor:
    end = tf.reduce_max(tf.abs(tf.stop_gradient(weight)), axis=axes)
    # A weight of zeros has no range; any will do, zero is on every grid.
    return tf.where(end > 0.0, end, tf.ones_like(end))


def _operation(end: tf.Tensor) -> Any:
    if len(end.shape):
        return tf.quantization.fake_quant_with_min_max_vars_per_channel
    return tf.quantization.fake_quant_with_min_max_vars
