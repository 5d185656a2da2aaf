"""A layer's weights with one scale per channel, as equalization moves them between layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import DataError

__all__ = ["LayerWeights"]

Array = np.ndarray[Any, np.dtype[np.float64]]


class LayerWeights:
    """A layer's kernel by input and output channel, and the scales of both.

    The kernel has the shape (..., input channels, output channels). In a depthwise kernel these
    are the channels and the multiplier, and each entry of the two axes is an output channel.
    """

    def __init__(self, layer: keras.layers.Layer, norm: keras.layers.Layer | None) -> None:
        self.layer, self.norm = layer, norm
        self.depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        kernel = self._variable.numpy().astype(np.float64)
        if not np.isfinite(kernel).all():
            raise DataError(
                f"Expected finite weights. Received: NaN or infinity in layer {layer.name!r}."
            )
        sizes = np.abs(self._turn(kernel)).max(axis=tuple(range(kernel.ndim - 2)))
        if norm is not None:
            folded = norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
            sizes = sizes * np.abs(folded.numpy()).reshape(sizes.shape if self.depthwise else (-1,))
        self.sizes = sizes
        self.input_scale = np.ones((len(sizes), 1))
        self.output_scale = np.ones(sizes.shape if self.depthwise else (1, sizes.shape[1]))

    @property
    def _variable(self) -> Any:
        return self.layer.depthwise_kernel if self.depthwise else self.layer.kernel

    def _turn(self, kernel: Array) -> Array:
        """Returns the kernel with its outputs last, or turns it back."""
        transposed = isinstance(self.layer, keras.layers.Conv2DTranspose)
        return np.swapaxes(kernel, -1, -2) if transposed else kernel

    def find_output_ranges(self) -> Array:
        """Returns the largest size of the weights that produce each output channel."""
        sizes = self.sizes * self.input_scale / self.output_scale
        return np.ravel(sizes) if self.depthwise else sizes.max(axis=0)

    def find_input_ranges(self, channels: int) -> Array:
        """Returns the largest size of the weights that take each of `channels` channels.

        After Flatten, a Dense layer takes each channel once for every position.
        """
        sizes = self.sizes * self.input_scale / self.output_scale
        return sizes.max(axis=1).reshape(-1, channels).max(axis=0)

    def find_input_shares(self, channels: int) -> Array:
        """Returns the largest share of a range that the weights taking each channel have."""
        sizes = self.sizes * self.input_scale
        if self.depthwise:  # each weight has a range of its own
            together = sizes
        else:
            together = sizes.max() if type(self.layer) is keras.layers.Dense else sizes.max(axis=0)
        shares = sizes / np.where(together > 0, together, 1.0)
        return np.asarray(shares.max(axis=1).reshape(-1, channels).max(axis=0))

    def divide_output(self, scale: Array) -> None:
        """Divides each output channel by `scale`, shape (channels,)."""
        self.output_scale *= scale.reshape(self.output_scale.shape)

    def multiply_input(self, scale: Array) -> None:
        """Multiplies what takes each channel by `scale`, shape (channels,)."""
        self.input_scale *= np.resize(scale, self.input_scale.shape)

    def write(self) -> None:
        """Writes the scaled weights to the layer and to its batch normalization."""
        factor = self.input_scale
        if self.norm is None:
            factor = factor / self.output_scale
        kernel = self._turn(self._turn(self._variable.numpy()) * factor)
        self._variable.assign(kernel.astype(np.float32))
        owner = self.layer if self.norm is None else self.norm
        for name in ("bias",) if self.norm is None else ("gamma", "beta"):
            variable = getattr(owner, name, None)
            if variable is not None:
                variable.assign(variable.numpy() / np.ravel(self.output_scale).astype(np.float32))
