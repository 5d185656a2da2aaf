"""Fake quantization of weights and activations on the integer kernels' own grids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

__all__ = [
    "ActivationQuantizer",
    "FixedQuantizer",
    "LearnedQuantizer",
    "LearnedWeightQuantizer",
    "WeightQuantizer",
    "as_config",
    "from_config",
]

_START = 6.0  # half the width of a range that no data have set yet
_DECAY = 0.99
_LEAST = 255e-6  # XNNPACK refuses a scale below 1e-8; 255 steps of 1e-6 are safely above
_LONG_PAST = 1e6  # batches that a calibrated range counts as


class _Quantizer:
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


class WeightQuantizer(_Quantizer):
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
        return _straight_through(
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
        step = np.maximum(end, _LEAST) / (2 ** (self.bits - 1) - 1)
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
                return _learned_gradient(up, values / step, step, -levels, levels, axes, size)

            return fake(values, -top, top, num_bits=bits, narrow_range=True), gradient

        return rounded(weight, tf.maximum(variables["step"], _LEAST / levels))


def _largest(weight: tf.Tensor, axes: list[int] | None) -> tf.Tensor:
    end = tf.reduce_max(tf.abs(tf.stop_gradient(weight)), axis=axes)
    # A weight of zeros has no range; any will do, zero is on every grid.
    return tf.where(end > 0.0, end, tf.ones_like(end))


def _straight_through(rounded: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[Any], tf.Tensor]:
    """Returns the function with a gradient of 1 everywhere."""
    return tf.custom_gradient(lambda values: (rounded(values), lambda up: up))


def _operation(end: tf.Tensor) -> Any:
    if len(end.shape):
        return tf.quantization.fake_quant_with_min_max_vars_per_channel
    return tf.quantization.fake_quant_with_min_max_vars


def _learned_gradient(
    up: tf.Tensor, scaled: Any, step: Any, least: Any, most: Any, axes: list[int], size: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients by the values and by the step (arXiv 1902.08153, equations 2 to 4)."""
    least, most = tf.cast(least, scaled.dtype), tf.cast(most, scaled.dtype)
    below, above = scaled < least, scaled > most
    inside = tf.logical_not(tf.logical_or(below, above))
    slope = tf.where(below, least, tf.where(above, most, tf.round(scaled) - scaled))
    by_step = tf.reduce_sum(up * slope, axis=axes) * tf.math.rsqrt(size * most)
    return tf.where(inside, up, tf.zeros_like(up)), tf.reshape(by_step, tf.shape(step))


class ActivationQuantizer(_Quantizer):
    """Asymmetric fake quantization of an activation, one range a tensor.

        scale = (high - low) / (2^bits - 1),  the zero point is moved to an integer

    In training the range follows the batches' own by a moving average without bias towards its
    start; a range that was calibrated counts as a long past. In inference nothing moves.

    The gradient passes straight through (Bengio et al., arXiv 1308.3432) while the range follows,
    since what is clipped then widens it; a range that stands still stops the gradient outside.

    Args:
        bits: Width of a code.
        moving: Follow the batches in training.
        non_negative: The values are never negative (after a ReLU): the low end stays 0.
    """

    def __init__(self, bits: int = 8, moving: bool = True, non_negative: bool = False) -> None:
        self.bits = bits
        self.moving = moving
        self.non_negative = non_negative

    def build(self, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds the ends of the range, scalars, and how many batches they have followed."""
        constant = keras.initializers.Constant
        low = 0.0 if self.non_negative else -_START
        return {
            key: layer.add_weight(
                f"{name}_{key}",
                shape=(),
                initializer=constant(value),
                trainable=False,
                aggregation=tf.VariableAggregation.MEAN,
            )
            for key, value in (("min", low), ("max", _START), ("batches", 0.0))
        }

    def __call__(self, values: tf.Tensor, training: Any, variables: dict[str, Any]) -> tf.Tensor:
        """Returns the values on the range's grid, in their own shape."""
        low, high = variables["min"], variables["max"]
        following = training and self.moving and self.follows
        if following:
            low, high = self._follow(values, variables)
        if self.passes:
            if self.observe is not None:
                self.observe(self, values)
            return values
        fake = tf.quantization.fake_quant_with_min_max_vars
        if not following:
            return fake(values, low, high, num_bits=self.bits)
        # Not the operation's own gradient: that sums over all values twice, for ends that no
        # optimizer moves.
        return _straight_through(lambda x: fake(x, low, high, num_bits=self.bits))(values)

    def set_range(self, variables: dict[str, Any], low: float, high: float) -> None:
        """Sets the range to what a calibration found."""
        variables["min"].assign(low)
        variables["max"].assign(high)
        variables["batches"].assign(_LONG_PAST)

    def range_of(self, variables: dict[str, Any]) -> tuple[float, float] | None:
        """Returns the range, or None where neither data nor training have set it."""
        if float(variables["batches"].numpy()) == 0:
            return None
        return float(variables["min"].numpy()), float(variables["max"].numpy())

    def _follow(self, values: tf.Tensor, variables: dict[str, Any]) -> tuple[Any, Any]:
        """Moves the range towards that of the batch, over all replicas; returns its ends."""
        values = tf.stop_gradient(values)
        high = tf.maximum(tf.reduce_max(values), 0.0)
        low = tf.zeros(()) if self.non_negative else tf.minimum(tf.reduce_min(values), 0.0)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            # The ends of every replica's part are those of the whole batch.
            ends = replica.all_gather(tf.stack([-low, high])[tf.newaxis], axis=0)
            ends = tf.reduce_max(ends, axis=0)
            low, high = -ends[0], ends[1]
        seen = variables["batches"] + 1.0
        # (1 - d) / (1 - dᵗ): the plain average at first, so that the start leaves no trace.
        share = (1.0 - _DECAY) / (1.0 - tf.pow(_DECAY, seen))
        high = variables["max"] + share * (high - variables["max"])
        variables["max"].assign(high)
        if not self.non_negative:
            low = variables["min"] + share * (low - variables["min"])
            variables["min"].assign(low)
        variables["batches"].assign(seen)
        return low, high

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"bits": self.bits, "moving": self.moving, "non_negative": self.non_negative}


class LearnedQuantizer(_Quantizer):
    """Fake quantization of an activation with a learned scale (LSQ, arXiv 1902.08153).

        x_hat = s · (clamp(round(x / s) + z, 0, 255) - z)
        ∂x_hat/∂s = round(x / s) - x / s inside, -z or 255 - z outside,
        times 1 / sqrt((255 - z) · values of a sample)

    The scale and the zero point start where calibration puts them; the zero point stays.

    Args:
        bits: Width of a code.
        non_negative: The values are never negative (after a ReLU): the zero point is 0.
    """

    def __init__(self, bits: int = 8, non_negative: bool = False) -> None:
        self.bits = bits
        self.non_negative = non_negative

    def build(self, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds the scale, the zero point and whether they were set, scalars."""
        codes = 2**self.bits - 1
        zero = 0.0 if self.non_negative else (codes + 1) / 2
        return {
            key: layer.add_weight(
                f"{name}_{key}",
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=trainable,
                aggregation=tf.VariableAggregation.MEAN,
            )
            for key, value, trainable in (
                ("step", (1 if self.non_negative else 2) * _START / codes, True),
                ("zero", zero, False),
                ("batches", 0.0, False),
            )
        }

    def __call__(self, values: tf.Tensor, training: Any, variables: dict[str, Any]) -> tf.Tensor:
        """Returns the values on the grid, in their own shape."""
        del training
        if self.passes:
            if self.observe is not None:
                self.observe(self, values)
            return values
        codes = 2**self.bits - 1
        zero = tf.convert_to_tensor(variables["zero"])
        size = float(np.prod([n or 1 for n in values.shape[1:]]))
        axes = list(range(len(values.shape)))

        @tf.custom_gradient
        def rounded(x: tf.Tensor, step: tf.Tensor) -> Any:
            low, high = -zero * step, (codes - zero) * step

            def gradient(up: tf.Tensor) -> Any:
                return _learned_gradient(up, x / step, step, -zero, codes - zero, axes, size)

            fake = tf.quantization.fake_quant_with_min_max_vars
            return fake(x, low, high, num_bits=self.bits), gradient

        return rounded(values, tf.maximum(variables["step"], _LEAST / codes))

    def set_range(self, variables: dict[str, Any], low: float, high: float) -> None:
        """Sets scale and zero point to what a calibration found."""
        codes = 2**self.bits - 1
        step = (high - low) / codes
        variables["step"].assign(step)
        variables["zero"].assign(min(max(round(-low / step), 0), codes))
        variables["batches"].assign(_LONG_PAST)

    def range_of(self, variables: dict[str, Any]) -> tuple[float, float] | None:
        """Returns the range, or None where no data have set it."""
        if float(variables["batches"].numpy()) == 0:
            return None
        step, zero = float(variables["step"].numpy()), float(variables["zero"].numpy())
        return -zero * step, (2**self.bits - 1 - zero) * step

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"bits": self.bits, "non_negative": self.non_negative}


class FixedQuantizer(_Quantizer):
    """Fake quantization on the grid that TensorFlow Lite's specification prescribes.

    Softmax and sigmoid give multiples of 1/256 from 0, tanh multiples of 1/128 from -1.

    Args:
        low: Value of the least code.
        high: Value of the greatest code.
        bits: Width of a code.
    """

    def __init__(self, low: float, high: float, bits: int = 8) -> None:
        self.low = low
        self.high = high
        self.bits = bits

    def build(self, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds nothing."""
        del name, layer
        return {}

    def __call__(self, values: tf.Tensor, training: Any, variables: dict[str, Any]) -> tf.Tensor:
        """Returns the values on the grid, in their own shape."""
        del training, variables
        if self.passes:
            return values
        return tf.quantization.fake_quant_with_min_max_args(
            values, self.low, self.high, num_bits=self.bits
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"low": self.low, "high": self.high, "bits": self.bits}


_KINDS: dict[str, type[_Quantizer]] = {
    kind.__name__: kind
    for kind in (
        ActivationQuantizer,
        FixedQuantizer,
        LearnedQuantizer,
        LearnedWeightQuantizer,
        WeightQuantizer,
    )
}


def as_config(quantizer: Any) -> dict[str, Any] | None:
    """Returns a quantizer as plain values, alike in every file format of Keras."""
    if quantizer is None:
        return None
    return {"kind": type(quantizer).__name__, **quantizer.get_config()}


def from_config(config: dict[str, Any] | None) -> Any:
    """Returns the quantizer that `as_config` described."""
    if config is None:
        return None
    arguments = dict(config)
    return _KINDS[arguments.pop("kind")](**arguments)
