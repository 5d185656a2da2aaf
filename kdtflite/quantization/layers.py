"""The layers that only a quantization-aware model has."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.quantization.quantizers import as_config, from_config

__all__ = [
    "DepthwiseBatchNormalization",
    "FakeQuantize",
    "FakeQuantized",
    "FoldedBatchNormalization",
]

_REGISTER = keras.utils.register_keras_serializable("kdtflite")


@_REGISTER
class FakeQuantize(keras.layers.Layer):
    """Rounds the tensor that passes through it.

    Args:
        quantizer: An `ActivationQuantizer` or `FixedQuantizer`.
        name: "quant_" and the name of the layer whose output is rounded.
    """

    def __init__(self, quantizer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.quantizer = _make_quantizer(quantizer)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Adds the range's variables."""
        self.range = self.quantizer.build("output", self)
        super().build(input_shape)

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Returns the tensor on its grid."""
        return self.quantizer(inputs, training, self.range)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "quantizer": as_config(self.quantizer),
        }


@_REGISTER
class FakeQuantized(keras.layers.Wrapper):
    """A layer whose weights and output are rounded as the integer kernels will hold them.

    The layer's own variables do not change; rounded tensors take their place while it computes.

    Args:
        layer: The layer.
        weights: Names of the layer's attributes that hold weights, with their quantizers.
        output: The quantizer of its output, or None where a later layer rounds.
    """

    def __init__(
        self, layer: Any, weights: dict[str, Any], output: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(layer, **kwargs)
        self.weight_quantizers = {
            name: _make_quantizer(quantizer) for name, quantizer in weights.items()
        }
        self.quantizer = _make_quantizer(output)

    def build(self, input_shape: Any) -> None:
        """Builds the layer and adds the range's variables."""
        super().build(input_shape)
        self.range = self.quantizer.build("output", self) if self.quantizer is not None else {}
        self.weight_ranges = {
            name: quantizer.build(getattr(self.layer, name), name, self)
            for name, quantizer in self.weight_quantizers.items()
        }

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Returns the rounded output of the layer with rounded weights."""
        if "training" in inspect.signature(self.layer.call).parameters:
            kwargs["training"] = training
        with self._round_weights():
            outputs = self.layer.call(inputs, **kwargs)
        return outputs if self.quantizer is None else self.quantizer(outputs, training, self.range)

    def compute_pre_activation(self, inputs: Any) -> Any:
        """Returns the output of the layer with rounded weights before its activation."""
        kept = getattr(self.layer, "activation", None)
        object.__setattr__(self.layer, "activation", keras.activations.linear)
        try:
            with self._round_weights():
                return self.layer.call(inputs)
        finally:
            object.__setattr__(self.layer, "activation", kept)

    @contextlib.contextmanager
    def _round_weights(self) -> Iterator[None]:
        kept = {name: getattr(self.layer, name) for name in self.weight_quantizers}
        # Keras' own __setattr__ would track the tensors.
        for name, quantizer in self.weight_quantizers.items():
            rounded = quantizer(kept[name], self.weight_ranges[name])
            object.__setattr__(self.layer, name, rounded)
        try:
            yield
        finally:
            for name, weight in kept.items():
                object.__setattr__(self.layer, name, weight)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the output shape of the layer."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "weights": {name: as_config(q) for name, q in self.weight_quantizers.items()},
            "output": as_config(self.quantizer),
        }


@_REGISTER
class FoldedBatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalization with statistics that a schedule can freeze while the rest trains.

    Attributes:
        frozen_statistics: Normalize by the moving mean and variance in training too.
        observe: While ranges are calibrated for training: normalize by the batch's own mean and
            variance, as training does, and call this with the layer and both. Nothing moves.
    """

    frozen_statistics: bool = False
    observe: Callable[[Any, Any, Any], None] | None = None

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Returns the normalized tensor, in the shape of `inputs`."""
        if self.observe is not None:
            mean, variance = tf.nn.moments(inputs, list(range(len(inputs.shape) - 1)))
            self.observe(self, mean, variance)
            beta, gamma = self.beta, self.gamma
            return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, self.epsilon)
        return super().call(inputs, training=training and not self.frozen_statistics, **kwargs)


@_REGISTER
class DepthwiseBatchNormalization(FoldedBatchNormalization):
    """Batch normalization that follows no convolution, for images (batch, height, width, channels).

    In training it is Keras' own. In inference it is a depthwise convolution of size 1 × 1. Its one
    weight per channel is exact in an int8 kernel: with one scale per channel, a single weight is
    always 127 steps. Keras' own would become a multiplication and an addition, whose factors
    share one scale.
    """

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Returns the normalized tensor, in the shape of `inputs`."""
        trains = training and self.trainable and not self.frozen_statistics
        if trains or self.observe is not None:
            return super().call(inputs, training=training, **kwargs)
        factor = tf.math.rsqrt(self.moving_variance + self.epsilon)
        if self.scale:
            factor *= self.gamma
        offset = -self.moving_mean * factor
        if self.center:
            offset += self.beta
        scaled = tf.nn.depthwise_conv2d(
            inputs, factor[tf.newaxis, tf.newaxis, :, tf.newaxis], [1, 1, 1, 1], "VALID"
        )
        return tf.nn.bias_add(scaled, offset)


def _make_quantizer(quantizer: Any) -> Any:
    return (
        quantizer
        if quantizer is None or hasattr(quantizer, "get_config")
        else from_config(dict(quantizer))
    )
