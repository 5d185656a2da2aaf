"""Small image classifiers to teach and to ship, ending in logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tf_keras as keras

from kdtflite.errors import ConfigurationError, choose

__all__ = ["ARCHITECTURES", "build_model"]

L = keras.layers


def build_model(
    architecture: str,
    *,
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int] | None = None,
    name: str = "model",
) -> keras.Model:
    """Builds an image classifier.

    Args:
        architecture: One of `ARCHITECTURES`.
        input_shape: Height, width, channels.
        classes: How many; the output is their logits, shape (batch, classes).
        widths: Channels of each block, in place of the architecture's own.
        name: Name of the model.

    Raises:
        ConfigurationError: No such architecture, widths it cannot have, or an image too small.
    """
    build, default = ARCHITECTURES[choose(architecture, ARCHITECTURES, what="architecture")]
    widths = list(widths or default)
    if len(widths) < 2 or min(widths) < 1:
        raise ConfigurationError(
            f"Expected widths to be two or more positive numbers. Received: {widths}."
        )
    if len(input_shape) != 3:
        raise ConfigurationError(
            f"Architecture {architecture!r} takes images (height, width, channels). "
            f"Received: samples of shape {tuple(input_shape)}."
        )
    pixels = keras.Input(tuple(input_shape), name="image")
    features = build(pixels, widths)
    pooled = L.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(pixels, L.Dense(classes, name="logits")(pooled), name=name)


def _convolution(x: Any, width: int, name: str, *, size: int = 3, stride: int = 1) -> Any:
    x = L.Conv2D(
        width,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = L.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return L.ReLU(name=f"{name}_relu")(x)


def _depthwise(x: Any, width: int, name: str, *, stride: int = 1) -> Any:
    x = L.DepthwiseConv2D(
        3,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise",
    )(x)
    x = L.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_bn")(x)
    x = L.ReLU(name=f"{name}_depthwise_relu")(x)
    return _convolution(x, width, name, size=1)


def _convnet(x: Any, widths: list[int]) -> Any:
    """A convolution, then blocks of two, halving the image between while it is large."""
    x = _convolution(x, widths[0], "stem")
    for i, width in enumerate(widths[1:], start=1):
        if min(x.shape[1:3]) >= 4:
            x = L.MaxPooling2D(name=f"block{i}_halve")(x)
        x = _convolution(x, width, f"block{i}a")
        x = _convolution(x, width, f"block{i}b")
    return x


def _depthwise_net(x: Any, widths: list[int]) -> Any:
    """A strided convolution, then depthwise-separable blocks (MobileNet, arXiv 1704.04861)."""
    # An image of 8 × 8 has no pixels to give away.
    large = min(x.shape[1:3]) >= 16
    x = _convolution(x, widths[0], "stem", stride=2 if large else 1)
    for i, width in enumerate(widths[1:], start=1):
        halve = i % 2 == 0 and min(x.shape[1:3]) >= 8
        x = _depthwise(x, width, f"block{i}", stride=2 if halve else 1)
    return x


def _resnet(x: Any, widths: list[int]) -> Any:
    """A residual block a width (arXiv 1512.03385); three make MLPerf Tiny's ResNet-8."""
    x = _convolution(x, widths[0], "stem")
    for i, width in enumerate(widths, start=1):
        stride = 1 if i == 1 else 2
        shortcut = x
        x = _convolution(x, width, f"block{i}a", stride=stride)
        x = L.Conv2D(
            width,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"block{i}b_conv",
        )(x)
        x = L.BatchNormalization(momentum=0.9, name=f"block{i}b_bn")(x)
        if stride > 1 or shortcut.shape[-1] != width:
            shortcut = L.Conv2D(
                width,
                1,
                strides=stride,
                padding="same",
                use_bias=False,
                name=f"block{i}_shortcut_conv",
            )(shortcut)
            shortcut = L.BatchNormalization(momentum=0.9, name=f"block{i}_shortcut_bn")(shortcut)
        x = L.ReLU(name=f"block{i}_relu")(L.Add(name=f"block{i}_add")([x, shortcut]))
    return x


ARCHITECTURES: dict[str, tuple[Callable[[Any, list[int]], Any], list[int]]] = {
    "convnet": (_convnet, [24, 48, 96]),
    "depthwise": (_depthwise_net, [16, 24, 32, 48, 64]),
    "resnet": (_resnet, [16, 32, 64]),
}
"""Architecture -> what builds its body, and the widths it has unless told otherwise."""
