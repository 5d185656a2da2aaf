"""The operations of Keras 3 on images, each as the TensorFlow calls that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kdtflite.models.keras3.configs import UnsupportedSettingError

__all__ = ["extract_patches", "move_blocks", "pool", "resize"]

# Takes the Keras 3 operation, whose attributes are its settings, and the operands.
Operation = Callable[..., Any]


def pool(function: Callable[..., Any]) -> Operation:
    """Returns the operation that pools with TensorFlow's `function`."""

    def call(operation: Any, x: Any) -> Any:
        _check_channels_last(operation)
        strides = operation.pool_size if operation.strides is None else operation.strides
        return function(x, operation.pool_size, strides, operation.padding.upper())

    return call


def move_blocks(function: Callable[..., Any]) -> Operation:
    """Returns the operation that moves blocks of an image between space and depth."""

    def call(operation: Any, x: Any) -> Any:
        _check_channels_last(operation)
        return function(x, operation.block_size)

    return call


def resize(operation: Any, x: Any) -> Any:
    """Resizes images of shape (batch, height, width, channels)."""
    _check_channels_last(operation)
    for name in ("antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio"):
        if getattr(operation, name):
            raise UnsupportedSettingError(f"it has {name}=True")
    return tf.image.resize(x, list(operation.size), method=operation.interpolation)


def extract_patches(operation: Any, x: Any) -> Any:
    """Cuts images into patches, each flattened into the last axis."""
    _check_channels_last(operation)
    if operation.is_3d:
        raise UnsupportedSettingError("its patches have three dimensions")

    def sizes(value: Any) -> list[int]:
        return [1, *([value] * 2 if isinstance(value, int) else value), 1]

    return tf.image.extract_patches(
        x,
        sizes(operation.size),
        sizes(operation.strides or operation.size),
        sizes(operation.dilation_rate),
        operation.padding.upper(),
    )


def _check_channels_last(operation: Any) -> None:
    if operation.data_format == "channels_first":
        raise UnsupportedSettingError("it has data_format='channels_first'")
