"""The layers that a quantization-aware model is made of."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
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
        self.quantizer = _object(quantizer)
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
    """A layer whose weights, and whose output, are rounded as the integer kernels will hold them.

    The layer's own variables stay what they are; the rounded ones take their place while it
    computes.

    Args:
        layer: The layer.
        weights: Names of the layer's attributes that hold weights, with their quantizers.
        output: The quantizer of its output, or None where what follows rounds.
    """

    def __init__(
        self, layer: Any, weights: dict[str, Any], output: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(layer, **kwargs)
        self.weight_quantizers = {name: _object(quantizer) for name, quantizer in weights.items()}
        self.quantizer = _object(output)

    def build(self, input_shape: Any) -> None:
        """Builds the layer and adds the range's variables."""
        super().build(input_shape)
        self.range = self.quantizer.build("output", self) if self.quantizer is not None else {}
        self.weight_ranges = {
            name: quantizer.build(getattr(self.layer, name), name, self)
            for name, quantizer in self.weight_quantizers.items()
        }

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Returns what the layer computes with rounded weights, rounded."""
        if "training" in inspect.signature(self.layer.call).parameters:
            kwargs["training"] = training
        with self._rounded():
            outputs = self.layer.call(inputs, **kwargs)
        return outputs if self.quantizer is None else self.quantizer(outputs, training, self.range)

    @contextlib.contextmanager
    def _rounded(self) -> Iterator[None]:
        held = {name: getattr(self.layer, name) for name in self.weight_quantizers}
        # Past Keras' own setting of attributes, which would track what is set.
        for name, quantizer in self.weight_quantizers.items():
            rounded = quantizer(held[name], self.weight_ranges[name])
            object.__setattr__(self.layer, name, rounded)
        try:
            yield
        finally:
            for name, weight in held.items():
                object.__setattr__(self.layer, name, weight)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the layer's own."""
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
    """Keras' batch normalization, whose statistics a schedule can freeze while the rest trains.

    Attributes:
        frozen_statistics: Normalize by the moving mean and variance in training too.
    """

    frozen_statistics: bool = False

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Returns the normalized tensor, in the shape of `inputs`."""
        return super().call(inputs, training=training and not self.frozen_statistics, **kwargs)


@_REGISTER
class DepthwiseBatchNormalization(FoldedBatchNormalization):
    """Batch normalization that follows no convolution, for images (batch, height, width, channels).

    In training it is Keras' own. In inference it is a depthwise convolution of size 1 × 1, whose
    one weight a channel an int8 kernel holds exactly: with a scale a channel, a single weight is
    always 127 steps. Keras' own would become a multiplication and an addition, whose factors
    share one scale.
    """

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Returns the normalized tensor, in the shape of `inputs`."""
        if training and self.trainable and not self.frozen_statistics:
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


def _object(quantizer: Any) -> Any:
    return (
        quantizer
        if quantizer is None or hasattr(quantizer, "get_config")
        else from_config(dict(quantizer))
    )
