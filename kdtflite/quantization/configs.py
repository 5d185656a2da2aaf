"""What TFMOT's own registry lacks or does otherwise than the integer kernels."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import tensorflow as tf
import tf_keras as keras

from kdtflite.runtime import import_tfmot

tfmot = import_tfmot()

# TFMOT keeps the parts of its default scheme out of its public names; 0.8.1 is pinned below 0.9.
from tensorflow_model_optimization.python.core.quantization.keras import (  # noqa: E402
    quantizers,
)
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (  # noqa: E402
    default_8bit_quantize_configs,
    default_8bit_quantize_layout_transform,
    default_8bit_quantize_registry,
    default_8bit_quantize_scheme,
)
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations import (  # noqa: E402
    model_transformer,
)

__all__ = ["OutputOnly", "Scheme", "keep_frozen", "quantize_scope"]


class PerChannelDepthwiseQuantizer(quantizers.LastValueQuantizer):
    """Fake quantization of a depthwise kernel with one scale a channel, as its kernels compute.

    TFMOT's own takes the last axis, the depth multiplier, for the channels: one scale in all.
    """

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=True, symmetric=True, narrow_range=True)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Adds the ranges, one a channel, for a kernel (height, width, channels, multiplier)."""
        channels = tensor_shape[-2] * tensor_shape[-1]
        return {
            f"{end}_var": layer.add_weight(
                f"{name}_{end}",
                shape=(channels,),
                initializer=keras.initializers.Constant(value),
                trainable=False,
            )
            for end, value in (("min", -6.0), ("max", 6.0))
        }

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        """Returns the kernel on its grid."""
        height, width, channels, multiplier = inputs.shape
        flat = tf.reshape(inputs, [height, width, 1, channels * multiplier])
        return tf.reshape(super().__call__(flat, training, weights, **kwargs), inputs.shape)


class DepthwiseConfig(default_8bit_quantize_registry.Default8BitConvQuantizeConfig):
    """TFMOT's configuration of convolutions, with the depthwise quantizer."""

    def __init__(
        self, weight_attrs: list[str], activation_attrs: list[str], quantize_output: bool
    ) -> None:
        super().__init__(weight_attrs, activation_attrs, quantize_output)
        self.weight_quantizer = PerChannelDepthwiseQuantizer()


class OutputOnly(default_8bit_quantize_configs.Default8BitOutputQuantizeConfig):
    """Fake-quantizes a layer's output: for activations that TFMOT refuses."""


class _Registry(default_8bit_quantize_registry.Default8BitQuantizeRegistry):
    def __init__(self) -> None:
        super().__init__()
        self._layer_quantize_map[keras.layers.DepthwiseConv2D] = DepthwiseConfig(
            ["depthwise_kernel"], ["activation"], False
        )


class _LayoutTransform(default_8bit_quantize_layout_transform.Default8BitQuantizeLayoutTransform):
    """TFMOT's graph rewrites, without two mistakes of theirs."""

    def apply(self, model: keras.Model, layer_quantize_map: dict[str, Any]) -> Any:
        """Returns the rewritten model and how each of its layers is quantized."""
        with mock.patch.object(
            model_transformer.ModelTransformer, "_match_layer_with_inputs", _match_in_order
        ):
            transformed, quantize_map = super().apply(model, layer_quantize_map)
        registry = _Registry()
        for layer in transformed.layers:
            how = quantize_map.get(layer.name, {})
            nothing = isinstance(
                how.get("quantize_config"), default_8bit_quantize_configs.NoOpQuantizeConfig
            )
            if not nothing or not registry.supports(layer):
                continue
            config = copy.copy(registry.get_quantize_config(layer))
            if getattr(config, "weight_attrs", None):
                # Before a ReLU layer TFMOT leaves out the output's quantization, which is right,
                # and the kernel's with it.
                config.activation_attrs, config.quantize_output = [], False
                how["quantize_config"] = config
        return transformed, quantize_map


_match = model_transformer.ModelTransformer._match_layer_with_inputs


def _match_in_order(transformer: Any, layer: Any, pattern: Any, is_head_node: bool) -> Any:
    """Matches a pattern against a layer and its inputs in the order in which it takes them.

    TFMOT's own sees the inputs in the order of the model's layers, and so swaps those of a
    concatenation whose first branch was built last.
    """

    def in_order(names: list[str]) -> list[Any]:
        by_name = {layer["config"]["name"]: layer for layer in transformer._config["layers"]}
        return [by_name[name] for name in dict.fromkeys(names) if name in by_name]

    with mock.patch.object(transformer, "_get_layers", in_order):
        return _match(transformer, layer, pattern, is_head_node)


class Scheme(default_8bit_quantize_scheme.Default8BitQuantizeScheme):
    """TFMOT's 8-bit scheme with depthwise kernels per channel.

    A registry, and not a configuration a layer: that would break the fusion of convolution,
    batch normalization and activation.
    """

    def get_layout_transformer(self) -> _LayoutTransform:
        """Returns what rewrites the graph before it is wrapped."""
        return _LayoutTransform()

    def get_quantize_registry(self) -> _Registry:
        """Returns what says how each kind of layer is quantized."""
        return _Registry()


def quantize_scope() -> Any:
    """Returns the scope in which quantization-aware models can be built and loaded."""
    return tfmot.quantization.keras.quantize_scope(
        {
            "DepthwiseConfig": DepthwiseConfig,
            "OutputOnly": OutputOnly,
            "PerChannelDepthwiseQuantizer": PerChannelDepthwiseQuantizer,
        }
    )


def keep_frozen(model: keras.Model) -> None:
    """Freezes the kernels of frozen layers, which TFMOT's wrappers count as trainable again."""
    for layer in model.layers:
        if hasattr(layer, "quantize_config") and not layer.layer.trainable:
            # Back to the layer inside, in front: files keep weights by their order.
            layer.layer._trainable_weights[:0] = layer._trainable_weights
            layer._trainable_weights = []
