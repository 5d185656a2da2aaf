"""Convolutions and dense layers as those that have an integer kernel with a scale a channel."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.quantization.rewrites import activations
from kdtflite.quantization.rewrites.context import Parts, image_part

__all__ = [
    "convolution",
    "convolution_1d",
    "dense",
    "depthwise_1d",
    "einsum_dense",
    "separable",
    "transposed_1d",
]

L = keras.layers


def _trained_as(layer: Any, *names: str) -> dict[str, Any]:
    """Returns the regularizers and constraints of a layer's weights."""
    kinds = [f"{name}_{kind}" for name in names for kind in ("regularizer", "constraint")]
    return {kind: getattr(layer, kind) for kind in kinds if getattr(layer, kind, None) is not None}


def _with_activation(parts: Parts, build: Any, rank: int = 4) -> Any:
    """Calls build(part, activation), and puts an activation that is not fused after it."""
    last = image_part(rank)
    name = activations.activation_name(parts.source)
    if name in activations.FUSED:
        return build(last, parts.source.activation)
    return activations.apply(parts, name, build("linear", None), last)


def convolution(parts: Parts, x: Any) -> Any:
    """Conv2D, DepthwiseConv2D, Conv2DTranspose: only another activation is split off."""
    if not activations.needs_splitting(parts.source):
        return NotImplemented
    return _with_activation(parts, lambda part, _: parts.clone(part, activation="linear")(x))


def separable(parts: Parts, x: Any) -> Any:
    """SeparableConv1D and SeparableConv2D as a depthwise and a pointwise convolution."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    one = isinstance(layer, L.SeparableConv1D)
    depthwise, pointwise, *bias = layer.get_weights()
    if one:
        depthwise, pointwise = depthwise[None], pointwise[None]
    kernel, strides, dilation = (
        _as_2d(value) if one else value
        for value in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    given = parts.row(x)
    padding = layer.padding
    if padding == "causal":
        given = _causal(parts, given, layer)
        padding = "valid"
    spread = parts.layer(
        L.DepthwiseConv2D,
        "depthwise",
        weights=[depthwise],
        kernel_size=kernel,
        strides=(max(strides),) * 2,
        padding=padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=dilation if not one else (dilation[1],) * 2,
        use_bias=False,
        **_trained_as(layer, "depthwise"),
    )(given)
    rank = len(x.shape)

    def build(part: str, activation: Any) -> Any:
        extra = {
            name.replace("pointwise", "kernel"): value
            for name, value in _trained_as(layer, "pointwise", "bias").items()
        }
        return parts.layer(
            L.Conv2D,
            part,
            weights=[pointwise, *bias],
            filters=layer.filters,
            kernel_size=1,
            use_bias=layer.use_bias,
            activation=activation,
            **extra,
        )(spread)

    return parts.unrow(_with_activation(parts, build, rank), rank)


def convolution_1d(parts: Parts, x: Any) -> Any:
    """Conv1D as Conv2D over an image of one row, which is what its kernel is."""
    layer = parts.source
    if layer.data_format != "channels_last" or len(x.shape) != 3:
        return NotImplemented
    row = parts.row(x)
    padding = layer.padding
    if padding == "causal":
        row, padding = _causal(parts, row, layer), "valid"
    kernel, *bias = layer.get_weights()

    def build(part: str, activation: Any) -> Any:
        return parts.layer(
            L.Conv2D,
            part,
            weights=[kernel[None], *bias],
            filters=layer.filters,
            kernel_size=_as_2d(layer.kernel_size),
            strides=_as_2d(layer.strides),
            dilation_rate=_as_2d(layer.dilation_rate),
            padding=padding,
            groups=layer.groups,
            use_bias=layer.use_bias,
            activation=activation,
            **_trained_as(layer, "kernel", "bias"),
        )(row)

    return parts.unrow(_with_activation(parts, build, 3), 3)


def depthwise_1d(parts: Parts, x: Any) -> Any:
    """DepthwiseConv1D as DepthwiseConv2D over an image of one row."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    row = parts.row(x)
    padding = layer.padding
    if padding == "causal":
        row, padding = _causal(parts, row, layer), "valid"
    kernel, *bias = layer.get_weights()

    def build(part: str, activation: Any) -> Any:
        return parts.layer(
            L.DepthwiseConv2D,
            part,
            weights=[kernel[None], *bias],
            kernel_size=_as_2d(layer.kernel_size),
            strides=(layer.strides[0],) * 2,
            dilation_rate=(layer.dilation_rate[0],) * 2,
            padding=padding,
            depth_multiplier=layer.depth_multiplier,
            use_bias=layer.use_bias,
            activation=activation,
            **_trained_as(layer, "depthwise", "bias"),
        )(row)

    return parts.unrow(_with_activation(parts, build, 3), 3)


def transposed_1d(parts: Parts, x: Any) -> Any:
    """Conv1DTranspose as Conv2DTranspose over an image of one row."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    kernel, *bias = layer.get_weights()
    output_padding = layer.output_padding

    def build(part: str, activation: Any) -> Any:
        return parts.layer(
            L.Conv2DTranspose,
            part,
            weights=[kernel[None], *bias],
            filters=layer.filters,
            kernel_size=_as_2d(layer.kernel_size),
            strides=_as_2d(layer.strides),
            dilation_rate=_as_2d(layer.dilation_rate),
            padding=layer.padding,
            output_padding=None if output_padding is None else (0, output_padding[0]),
            use_bias=layer.use_bias,
            activation=activation,
            **_trained_as(layer, "kernel", "bias"),
        )(parts.row(x))

    return parts.unrow(_with_activation(parts, build, 3), 3)


def dense(parts: Parts, x: Any) -> Any:
    """Dense on sequences or images, or before batch normalization, as a 1 × 1 convolution.

    A convolution's kernel has a scale a channel; a dense layer's has one in all, on which a folded
    batch normalization would spread its factors.
    """
    layer = parts.source
    rank = len(x.shape)
    folded = parts.follower(L.BatchNormalization) and rank == 2
    if rank == 2 and not folded:
        if not activations.needs_splitting(layer):
            return NotImplemented
        return _with_activation(parts, lambda part, _: parts.clone(part, activation="linear")(x))
    if rank > 4:
        return NotImplemented
    return pointwise(
        parts,
        x,
        [weight if i else weight[None, None] for i, weight in enumerate(layer.get_weights())],
        layer.use_bias,
        _trained_as(layer, "kernel", "bias"),
    )


def einsum_dense(parts: Parts, x: Any) -> Any:
    """EinsumDense where it is a dense layer: the last axis times a matrix."""
    layer = parts.source
    match = re.fullmatch(r"(\w+|\.\.\.\w)(\w),\2(\w)->\1\3", layer.equation.replace(" ", ""))
    match = match or re.fullmatch(r"(\.\.\.)(\w),\2(\w)->\1\3", layer.equation.replace(" ", ""))
    kernel, *bias = layer.get_weights()
    if match is None or len(x.shape) not in (2, 3, 4) or any(b.ndim != 1 for b in bias):
        return NotImplemented
    weights = [kernel[None, None], *bias]
    return pointwise(parts, x, weights, bool(bias), _trained_as(layer, "kernel", "bias"))


def pointwise(
    parts: Parts, x: Any, weights: list[np.ndarray], use_bias: bool, extra: dict[str, Any]
) -> Any:
    """Returns x times a kernel (1, 1, in, out), with the source's activation, in x's rank."""
    rank = len(x.shape)
    row = parts.row(x)

    def build(part: str, activation: Any) -> Any:
        return parts.layer(
            L.Conv2D,
            part,
            weights=weights,
            filters=weights[0].shape[-1],
            kernel_size=1,
            use_bias=use_bias,
            activation=activation,
            **extra,
        )(row)

    return parts.unrow(_with_activation(parts, build, rank), rank)


def _as_2d(sizes: tuple[int, ...]) -> tuple[int, int]:
    return (1, int(sizes[0]))


def _causal(parts: Parts, row: Any, layer: Any) -> Any:
    left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    return parts.layer(L.ZeroPadding2D, "causal", padding=((0, 0), (left, 0)))(row)
