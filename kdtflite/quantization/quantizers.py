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
    "WeightQuantizer",
    "as_config",
    "from_config",
]

_START = 6.0  # half the width of a range that no data have set yet
_DECAY = 0.99


class _Quantizer:
    """What all quantizers share.

    Attributes:
        passes: Let values pass unrounded: while a schedule delays rounding, or ranges are sought.
        observe: Called with the quantizer and an activation's values, where it passes them on.
    """

    bits: int = 8
    passes: bool = False
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

    def __call__(self, weight: Any) -> tf.Tensor:
        """Returns the weight on its grid, in its own shape."""
        weight = tf.convert_to_tensor(weight)
        if self.passes:
            return weight
        shape = weight.shape
        if not self.axes:
            end = tf.reduce_max(tf.abs(tf.stop_gradient(weight)))
            return _straight_through(weight, _not_zero(end), self.bits)
        # The operation knows the last axis only; the axes with scales are brought there as one.
        rank = len(shape)
        kept = [axis % rank for axis in self.axes]
        order = [axis for axis in range(rank) if axis not in kept] + kept
        moved = weight if order == list(range(rank)) else tf.transpose(weight, order)
        channels = int(np.prod([shape[axis] for axis in kept]))
        flat = tf.reshape(moved, [-1, 1, 1, channels] if len(kept) > 1 else moved.shape)
        ends = tf.reduce_max(tf.abs(tf.stop_gradient(flat)), axis=list(range(len(flat.shape) - 1)))
        rounded = tf.reshape(_straight_through(flat, _not_zero(ends), self.bits), moved.shape)
        if moved is weight:
            return rounded
        return tf.transpose(rounded, [order.index(axis) for axis in range(rank)])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"axes": list(self.axes), "bits": self.bits}


def _not_zero(end: tf.Tensor) -> tf.Tensor:
    # A weight of zeros has no range; any will do, zero is on every grid.
    return tf.where(end > 0.0, end, tf.ones_like(end))


def _straight_through(weight: tf.Tensor, end: tf.Tensor, bits: int) -> tf.Tensor:
    """Rounds a weight within ±end; a gradient passes as it is, since nothing is clipped."""
    fake = (
        tf.quantization.fake_quant_with_min_max_vars_per_channel
        if len(end.shape)
        else tf.quantization.fake_quant_with_min_max_vars
    )

    @tf.custom_gradient
    def rounded(values: tf.Tensor) -> Any:
        return fake(values, -end, end, num_bits=bits, narrow_range=True), lambda up: up

    return rounded(weight)


class ActivationQuantizer(_Quantizer):
    """Asymmetric fake quantization of an activation, one range a tensor.

        scale = (high - low) / (2^bits - 1),  the zero point is moved to an integer

    In training the range follows the batches' own by a moving average without bias towards its
    start; a range that was calibrated counts as a long past. In inference nothing moves.

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
        if training and self.moving:
            low, high = self._follow(values, variables)
        if self.passes:
            if self.observe is not None:
                self.observe(self, values)
            return values
        return tf.quantization.fake_quant_with_min_max_vars(values, low, high, num_bits=self.bits)

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


_KINDS = {kind.__name__: kind for kind in (ActivationQuantizer, FixedQuantizer, WeightQuantizer)}


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
