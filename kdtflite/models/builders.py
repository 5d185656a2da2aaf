"""Small image classifiers that end in logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tf_keras as keras

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, choose

__all__ = ["ARCHITECTURES", "build_model"]

L = keras.layers
_OPTIONS = {"padding": "same", "use_bias": False}


@check_arguments
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
        classes: Number of classes; the output are their logits, shape (batch, classes).
        widths: Channels of each block; by default those of the architecture.
        name: Name of the model.

    Raises:
        ConfigurationError: The architecture is unknown, the widths are not two or more positive
            numbers, or the input is not an image.

    Example:
        >>> import kdtflite
        >>> model = kdtflite.models.build_model("resnet", input_shape=(32, 32, 3), classes=10)
        >>> model.output_shape
        (None, 10)
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


def _convolve(
    x: Any,
    width: int,
    name: str,
    *,
    size: int = 3,
    stride: int = 1,
    initializer: str = "he_normal",
    relu: bool = True,
) -> Any:
    options = {**_OPTIONS, "strides": stride, "kernel_initializer": initializer}
    x = L.Conv2D(width, size, name=f"{name}_conv", **options)(x)
    return _normalize(x, name, relu=relu)


def _convolve_depthwise(x: Any, width: int, name: str, *, stride: int = 1) -> Any:
    options = {**_OPTIONS, "strides": stride, "depthwise_initializer": "he_normal"}
    x = L.DepthwiseConv2D(3, name=f"{name}_depthwise", **options)(x)
    return _convolve(_normalize(x, f"{name}_depthwise"), width, name, size=1)


def _normalize(x: Any, name: str, *, relu: bool = True) -> Any:
    x = L.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
    return L.ReLU(name=f"{name}_relu")(x) if relu else x


def _build_convnet(x: Any, widths: list[int]) -> Any:
    """Applies a convolution, then blocks of two, and halves a large image between them."""
    x = _convolve(x, widths[0], "stem")
    for i, width in enumerate(widths[1:], start=1):
        if min(x.shape[1:3]) >= 4:
            x = L.MaxPooling2D(name=f"block{i}_halve")(x)
        x = _convolve(x, width, f"block{i}a")
        x = _convolve(x, width, f"block{i}b")
    return x


def _build_depthwise(x: Any, widths: list[int]) -> Any:
    """Applies a strided convolution, then separable blocks (MobileNet, arXiv 1704.04861)."""
    # An image of 8 × 8 has no pixels to spare.
    large = min(x.shape[1:3]) >= 16
    x = _convolve(x, widths[0], "stem", stride=2 if large else 1)
    for i, width in enumerate(widths[1:], start=1):
        halve = i % 2 == 0 and min(x.shape[1:3]) >= 8
        x = _convolve_depthwise(x, width, f"block{i}", stride=2 if halve else 1)
    return x


def _build_resnet(x: Any, widths: list[int]) -> Any:
    """Applies one residual block per width (arXiv 1512.03385); three make ResNet-8."""
    x = _convolve(x, widths[0], "stem")
    for i, width in enumerate(widths, start=1):
        stride = 1 if i == 1 else 2
        shortcut = x
        x = _convolve(x, width, f"block{i}a", stride=stride)
        x = _convolve(x, width, f"block{i}b", relu=False)
        if stride > 1 or shortcut.shape[-1] != width:
            name = f"block{i}_shortcut"
            options: dict[str, Any] = {"size": 1, "stride": stride, "initializer": "glorot_uniform"}
            shortcut = _convolve(shortcut, width, name, relu=False, **options)
        x = L.ReLU(name=f"block{i}_relu")(L.Add(name=f"block{i}_add")([x, shortcut]))
    return x


ARCHITECTURES: dict[str, tuple[Callable[[Any, list[int]], Any], list[int]]] = {
    "convnet": (_build_convnet, [24, 48, 96]),
    "depthwise": (_build_depthwise, [16, 24, 32, 48, 64]),
    "resnet": (_build_resnet, [16, 32, 64]),
}
"""The function that builds the body of each architecture, and its default widths."""
