"""Fake quantization of activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.quantizers.base import (
    LEAST,
    LONG_PAST,
    START,
    Quantizer,
    learned_gradient,
    straight_through,
)

__all__ = ["ActivationQuantizer", "FixedQuantizer", "LearnedQuantizer"]

_DECAY = 0.99


class ActivationQuantizer(Quantizer):
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
        low = 0.0 if self.non_negative else -START
        return {
            key: layer.add_weight(
                f"{name}_{key}",
                shape=(),
                initializer=constant(value),
                trainable=False,
                aggregation=tf.VariableAggregation.MEAN,
            )
            for key, value in (("min", low), ("max", START), ("batches", 0.0))
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
        return straight_through(lambda x: fake(x, low, high, num_bits=self.bits))(values)

    def set_range(self, variables: dict[str, Any], low: float, high: float) -> None:
        """Sets the range to what a calibration found."""
        variables["min"].assign(low)
        variables["max"].assign(high)
        variables["batches"].assign(LONG_PAST)

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


class LearnedQuantizer(Quantizer):
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
                ("step", (1 if self.non_negative else 2) * START / codes, True),
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
                return learned_gradient(up, x / step, step, -zero, codes - zero, axes, size)

            fake = tf.quantization.fake_quant_with_min_max_vars
            return fake(x, low, high, num_bits=self.bits), gradient

        return rounded(values, tf.maximum(variables["step"], LEAST / codes))

    def set_range(self, variables: dict[str, Any], low: float, high: float) -> None:
        """Sets scale and zero point to what a calibration found."""
        codes = 2**self.bits - 1
        step = (high - low) / codes
        variables["step"].assign(step)
        variables["zero"].assign(min(max(round(-low / step), 0), codes))
        variables["batches"].assign(LONG_PAST)

    def range_of(self, variables: dict[str, Any]) -> tuple[float, float] | None:
        """Returns the range, or None where no data have set it."""
        if float(variables["batches"].numpy()) == 0:
            return None
        step, zero = float(variables["step"].numpy()), float(variables["zero"].numpy())
        return -zero * step, (2**self.bits - 1 - zero) * step

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"bits": self.bits, "non_negative": self.non_negative}


class FixedQuantizer(Quantizer):
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
