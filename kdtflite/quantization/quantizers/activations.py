"""Fake quantization of activations."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.quantizers.base import (
    LONG_PAST,
    NARROWEST,
    START,
    Quantizer,
    compute_learned_gradient,
    pass_gradient,
    replace_zero,
)

__all__ = ["ActivationQuantizer", "FixedQuantizer", "LearnedQuantizer"]

_DECAY = 0.99
# For so many steps after its start or its calibration a range is begun anew where training leaves
# it: where a batch is _FAR times as wide, or, at the first step, where the range is.
_YOUNG = 100.0
_FAR = 4.0


class ActivationQuantizer(Quantizer):
    """Asymmetric fake quantization of an activation, one range per tensor.

        scale = (high - low) / (2^bits - 1),  the zero point is moved to an integer

    In training the range follows the ranges of the batches by a moving average that is not biased
    towards its start; a calibrated range counts as a long past. In inference nothing moves.

    A batch normalization trains on the statistics of its batch, and is calibrated on its moving
    ones. Where the two differ, as in a model that was trained for a few steps or not at all, a
    calibrated range may be thousands of times too narrow or too wide for training. Such a range is
    begun anew with the batch. A batch in which every value is 0 moves nothing.

    While the range follows, a batch is rounded on the smallest range that holds both the average
    and the batch. So nothing is clipped, and the gradient passes straight through (Bengio et al.,
    arXiv 1308.3432). A range that stays clips, and stops the gradient outside.

    Args:
        bits: Bits per code.
        moving: Follow the batches in training.
        non_negative: The values are never negative (after a ReLU): the low end stays 0.
        nonzero: In training, what rounds to 0 becomes half a step, as `replace_zero` says.
    """

    def __init__(
        self,
        bits: int = 8,
        moving: bool = True,
        non_negative: bool = False,
        nonzero: bool = False,
    ) -> None:
        self.bits = bits
        self.moving = moving
        self.non_negative = non_negative
        self.nonzero = nonzero

    def build(self, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds the limits of the range, scalars, and the number of batches they have followed."""
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
        fake = functools.partial(
            tf.quantization.fake_quant_with_min_max_vars, min=low, max=high, num_bits=self.bits
        )
        # The operation's own gradient sums over all values twice, for limits that no optimizer
        # moves.
        rounded = pass_gradient(fake)(values) if following else fake(values)
        if training and self.nonzero:
            return replace_zero(rounded, (high - low) / (2**self.bits - 1))
        return rounded

    def set_range(self, variables: dict[str, Any], low: float, high: float) -> None:
        """Sets the range to what a calibration found."""
        variables["min"].assign(low)
        variables["max"].assign(high)
        variables["batches"].assign(LONG_PAST)

    def read_range(self, variables: dict[str, Any]) -> tuple[float, float] | None:
        """Returns the range, or None where neither data nor training have set it."""
        if float(variables["batches"].numpy()) == 0:
            return None
        return float(variables["min"].numpy()), float(variables["max"].numpy())

    def _follow(self, values: tf.Tensor, variables: dict[str, Any]) -> tuple[Any, Any]:
        """Moves the range towards that of the batch; returns the limits that hold both.

        Every quantizer does this in every step: each operation counts, however small.
        """
        batch_low, batch_high = self._measure(tf.stop_gradient(values))
        low, high = tf.convert_to_tensor(variables["min"]), tf.convert_to_tensor(variables["max"])
        count = tf.convert_to_tensor(variables["batches"])
        batch_width, width = batch_high - batch_low, high - low
        age = tf.math.floormod(count, LONG_PAST)  # steps since the start or the calibration
        outgrown = tf.logical_and(batch_width > _FAR * width, age < _YOUNG)
        # Only at the first step: later, a batch of near silence is no reason.
        shrunk = tf.logical_and(_FAR * batch_width < width, tf.equal(age, 0.0))
        anew = tf.logical_or(outgrown, shrunk)
        alive = batch_width > 0.0
        seen = tf.where(anew, 1.0, count + 1.0)
        # (1 - d) / (1 - dᵗ): the plain mean at first, so that the start leaves no trace.
        share = (1.0 - _DECAY) / (1.0 - tf.pow(_DECAY, seen))
        share = tf.where(alive, tf.where(anew, 1.0, share), 0.0)
        stay = 1.0 - share
        if not self.non_negative:
            low = stay * low + share * batch_low
            variables["min"].assign(low)
        high = tf.maximum(stay * high + share * batch_high, low + NARROWEST)
        variables["max"].assign(high)
        variables["batches"].assign(tf.where(alive, seen, count))
        return tf.minimum(low, batch_low), tf.maximum(high, batch_high)

    def _measure(self, values: tf.Tensor) -> tuple[Any, Any]:
        """Returns the least and the greatest value of a batch over all replicas, and of 0."""
        high = tf.maximum(tf.reduce_max(values), 0.0)
        low = tf.zeros(()) if self.non_negative else tf.minimum(tf.reduce_min(values), 0.0)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            # The limits of all parts together are those of the whole batch.
            ends = replica.all_gather(tf.stack([-low, high])[tf.newaxis], axis=0)
            ends = tf.reduce_max(ends, axis=0)
            low, high = -ends[0], ends[1]
        return low, high


class LearnedQuantizer(Quantizer):
    """Fake quantization of an activation with a learned scale (LSQ, arXiv 1902.08153).

        x_hat = s · (clamp(round(x / s) + z, 0, 255) - z)
        ∂x_hat/∂s = round(x / s) - x / s inside, -z or 255 - z outside,
        times 1 / sqrt((255 - z) · number of values per sample)

    The scale and the zero point start where calibration puts them; the zero point stays.

    Attributes:
        moving: False: the range does not follow the batches.

    Args:
        bits: Bits per code.
        non_negative: The values are never negative (after a ReLU): the zero point is 0.
        nonzero: In training, what rounds to 0 becomes half a step, as `replace_zero` says.
    """

    moving: bool = False

    def __init__(self, bits: int = 8, non_negative: bool = False, nonzero: bool = False) -> None:
        self.bits = bits
        self.non_negative = non_negative
        self.nonzero = nonzero

    def build(self, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds the scale, the zero point and the number of batches that set them, scalars."""
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
        if self.passes:
            if self.observe is not None:
                self.observe(self, values)
            return values
        codes = 2**self.bits - 1
        zero = tf.convert_to_tensor(variables["zero"])
        size = float(np.prod([n or 1 for n in values.shape[1:]]))
        axes = list(range(len(values.shape)))

        @tf.custom_gradient
        def fake_quantize(x: tf.Tensor, step: tf.Tensor) -> Any:
            low, high = -zero * step, (codes - zero) * step

            def gradient(up: tf.Tensor) -> Any:
                return compute_learned_gradient(up, x / step, step, -zero, codes - zero, axes, size)

            fake = tf.quantization.fake_quant_with_min_max_vars
            return fake(x, low, high, num_bits=self.bits), gradient

        step = tf.maximum(variables["step"], NARROWEST / codes)
        rounded = fake_quantize(values, step)
        return replace_zero(rounded, step) if training and self.nonzero else rounded

    def set_range(self, variables: dict[str, Any], low: float, high: float) -> None:
        """Sets scale and zero point to what a calibration found."""
        codes = 2**self.bits - 1
        step = (high - low) / codes
        variables["step"].assign(step)
        variables["zero"].assign(min(max(round(-low / step), 0), codes))
        variables["batches"].assign(LONG_PAST)

    def read_range(self, variables: dict[str, Any]) -> tuple[float, float] | None:
        """Returns the range, or None where no data have set it."""
        if float(variables["batches"].numpy()) == 0:
            return None
        step, zero = float(variables["step"].numpy()), float(variables["zero"].numpy())
        return -zero * step, (2**self.bits - 1 - zero) * step


class FixedQuantizer(Quantizer):
    """Fake quantization on the grid that TensorFlow Lite's specification prescribes.

    Softmax and sigmoid return multiples of 1/256 from 0, tanh multiples of 1/128 from -1.

    Args:
        low: Value of the least code.
        high: Value of the greatest code.
        bits: Bits per code.
        nonzero: In training, what rounds to 0 becomes half a step, as `replace_zero` says.
        head: The values are probabilities that only the loss takes. In training they stay as they
            are: a loss takes their logarithm, and that of code 0 is infinite.
    """

    def __init__(
        self, low: float, high: float, bits: int = 8, nonzero: bool = False, head: bool = False
    ) -> None:
        self.low = low
        self.high = high
        self.bits = bits
        self.nonzero = nonzero
        self.head = head

    def build(self, name: str, layer: keras.layers.Layer) -> dict[str, Any]:
        """Adds nothing."""
        del name, layer
        return {}

    def __call__(self, values: tf.Tensor, training: Any, variables: dict[str, Any]) -> tf.Tensor:
        """Returns the values on the grid, in their own shape."""
        del variables
        if self.passes or (training and self.head):
            return values
        rounded = tf.quantization.fake_quant_with_min_max_args(
            values, self.low, self.high, num_bits=self.bits
        )
        if training and self.nonzero:
            return replace_zero(rounded, (self.high - self.low) / (2**self.bits - 1))
        return rounded
