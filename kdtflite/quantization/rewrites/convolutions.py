"""Rewrites convolutions and dense layers into convolutions with one scale per channel."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.models.layer_names import name_image
from kdtflite.quantization.rewrites import activations
from kdtflite.quantization.rewrites.context import LayerParts

__all__ = [
    "rewrite_convolution",
    "rewrite_convolution_1d",
    "rewrite_dense",
    "rewrite_depthwise_1d",
    "rewrite_einsum_dense",
    "rewrite_separable",
    "rewrite_transposed_1d",
]

L = keras.layers


def _collect_regularizers(layer: Any, *names: str) -> dict[str, Any]:
    """Returns the regularizers and constraints of a layer's weights by argument name."""
    kinds = [f"{name}_{kind}" for name in names for kind in ("regularizer", "constraint")]
    return {kind: getattr(layer, kind) for kind in kinds if getattr(layer, kind, None) is not None}


def _build_with_activation(parts: LayerParts, build: Any, rank: int = 4) -> Any:
    """Calls build(part, activation), and adds an activation that is not fused after it."""
    last = name_image(rank)
    name = activations.get_activation_name(parts.source)
    if name in activations.FUSED:
        return build(last, parts.source.activation)
    return activations.apply(parts, name, build("linear", None), last)


def rewrite_convolution(parts: LayerParts, x: Any) -> Any:
    """Conv2D, DepthwiseConv2D and Conv2DTranspose: an activation that is not fused is split off."""
    if not activations.must_be_split(parts.source):
        return NotImplemented
    return _build_with_activation(
        parts, lambda part, _: parts.add_copy(part, activation="linear")(x)
    )


def rewrite_separable(parts: LayerParts, x: Any) -> Any:
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
    row, padding = _pad_causally(parts, parts.as_row(x))
    spread = parts.add_layer(
        L.DepthwiseConv2D,
        "depthwise",
        weights=[depthwise],
        kernel_size=kernel,
        strides=(max(strides),) * 2,
        padding=padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=dilation if not one else (dilation[1],) * 2,
        use_bias=False,
        **_collect_regularizers(layer, "depthwise"),
    )(row)
    rank = len(x.shape)

    def build(part: str, activation: Any) -> Any:
        extra = {
            name.replace("pointwise", "kernel"): value
            for name, value in _collect_regularizers(layer, "pointwise", "bias").items()
        }
        weights = [pointwise, *bias]
        return parts.add_pointwise(part, weights, activation=activation, **extra)(spread)

    return parts.from_row(_build_with_activation(parts, build, rank), rank)


def rewrite_convolution_1d(parts: LayerParts, x: Any) -> Any:
    """Conv1D as Conv2D over an image of one row."""
    layer = parts.source
    if len(x.shape) != 3:
        return NotImplemented
    return _rewrite_row(parts, x, L.Conv2D, filters=layer.filters, groups=layer.groups)


def rewrite_depthwise_1d(parts: LayerParts, x: Any) -> Any:
    """DepthwiseConv1D as DepthwiseConv2D over an image of one row."""
    layer = parts.source
    return _rewrite_row(
        parts,
        x,
        L.DepthwiseConv2D,
        kernel="depthwise",
        strides=(layer.strides[0],) * 2,
        dilation_rate=(layer.dilation_rate[0],) * 2,
        depth_multiplier=layer.depth_multiplier,
    )


def rewrite_transposed_1d(parts: LayerParts, x: Any) -> Any:
    """Conv1DTranspose as Conv2DTranspose over an image of one row."""
    layer = parts.source
    padding = layer.output_padding
    return _rewrite_row(
        parts,
        x,
        L.Conv2DTranspose,
        filters=layer.filters,
        output_padding=None if padding is None else (0, padding[0]),
    )


def _rewrite_row(
    parts: LayerParts, x: Any, kind: type, *, kernel: str = "kernel", **options: Any
) -> Any:
    """Returns the one-dimensional convolution as one of `kind` over an image of one row."""
    layer = parts.source
    if layer.data_format != "channels_last":
        return NotImplemented
    row, padding = _pad_causally(parts, parts.as_row(x))
    weights, *bias = layer.get_weights()
    options = {
        "kernel_size": _as_2d(layer.kernel_size),
        "strides": _as_2d(layer.strides),
        "dilation_rate": _as_2d(layer.dilation_rate),
        "padding": padding,
        "use_bias": layer.use_bias,
        **_collect_regularizers(layer, kernel, "bias"),
        **options,
    }

    def build(part: str, activation: Any) -> Any:
        added = parts.add_layer(
            kind, part, weights=[weights[None], *bias], activation=activation, **options
        )
        return added(row)

    return parts.from_row(_build_with_activation(parts, build, 3), 3)


def rewrite_dense(parts: LayerParts, x: Any) -> Any:
    """Dense on sequences or images, or before batch normalization, as a 1 × 1 convolution.

    A convolution's kernel has one scale per channel. A dense layer's kernel has one in all, which a
    folded batch normalization would make too coarse for some channels.
    """
    layer = parts.source
    rank = len(x.shape)
    folded = parts.is_followed_by(L.BatchNormalization) and rank == 2
    if rank == 2 and not folded:
        if not activations.must_be_split(layer):
            return NotImplemented
        return _build_with_activation(
            parts, lambda part, _: parts.add_copy(part, activation="linear")(x)
        )
    if rank > 4:
        return NotImplemented
    return _build_pointwise(
        parts,
        x,
        [weight if i else weight[None, None] for i, weight in enumerate(layer.get_weights())],
        _collect_regularizers(layer, "kernel", "bias"),
    )


def rewrite_einsum_dense(parts: LayerParts, x: Any) -> Any:
    """EinsumDense where it is a dense layer: the last axis times a matrix."""
    layer = parts.source
    match = re.fullmatch(r"(\w+|\.\.\.\w)(\w),\2(\w)->\1\3", layer.equation.replace(" ", ""))
    match = match or re.fullmatch(r"(\.\.\.)(\w),\2(\w)->\1\3", layer.equation.replace(" ", ""))
    kernel, *bias = layer.get_weights()
    if match is None or len(x.shape) not in (2, 3, 4) or any(b.ndim != 1 for b in bias):
        return NotImplemented
    weights = [kernel[None, None], *bias]
    return _build_pointwise(parts, x, weights, _collect_regularizers(layer, "kernel", "bias"))


def _build_pointwise(
    parts: LayerParts, x: Any, weights: list[np.ndarray], extra: dict[str, Any]
) -> Any:
    """Returns x times a kernel (1, 1, in, out), with the source's activation, in x's rank."""
    rank = len(x.shape)
    row = parts.as_row(x)

    def build(part: str, activation: Any) -> Any:
        return parts.add_pointwise(part, weights, activation=activation, **extra)(row)

    return parts.from_row(_build_with_activation(parts, build, rank), rank)


def _as_2d(sizes: tuple[int, ...]) -> tuple[int, int]:
    return (1, int(sizes[0]))


def _pad_causally(parts: LayerParts, row: Any) -> tuple[Any, str]:
    """Returns the row, padded on the left for a causal layer, and the padding still to be done."""
    layer = parts.source
    if layer.padding != "causal":
        return row, layer.padding
    left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    padded = parts.add_layer(L.ZeroPadding2D, "causal", padding=((0, 0), (left, 0)))(row)
    return padded, "valid"
