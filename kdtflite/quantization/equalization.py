"""Cross-layer equalization (Nagel et al., arXiv 1906.04721; Xiao et al., arXiv 2211.10438)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import DataError, UnsupportedModelError
from kdtflite.models.as_functional import as_functional
from kdtflite.models.float32 import custom_layers, float32_policy, in_float32
from kdtflite.progress import say
from kdtflite.quantization.chains import Pair, find_pairs
from kdtflite.quantization.inputs import input_batches

__all__ = ["Equalization", "EqualizedPair", "equalize"]

Array = np.ndarray[Any, np.dtype[np.float64]]

_SWEEPS = 200
# A sweep that changes no scale by more than this share ends it.
_SETTLED = 1e-5
# Largest difference, relative to the largest output, that float32 alone makes.
_SAME = 1e-4


@dataclass(frozen=True, eq=False)
class EqualizedPair:
    """Two consecutive layers whose channels' weights were brought to equal ranges.

    Attributes:
        first: Name of the layer that gives the channels.
        second: Name of the layer that takes them.
        before: Two ranges a channel, shape (channels, 2): the largest size of the weights that
            give it, batch normalization folded in, or with representative data of its values;
            and the largest size of the weights that take it, with representative data as a share
            of what is quantized together with it.
        after: The same after equalization.
    """

    first: str
    second: str
    before: Array
    after: Array

    def to_dict(self) -> dict[str, Any]:
        """Returns the pair as plain values for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "channels": len(self.before),
            "spread_before": _spread(self.before),
            "spread_after": _spread(self.after),
        }


@dataclass(frozen=True, eq=False)
class Equalization:
    """What `equalize` did, as `model.equalization`.

    Attributes:
        pairs: The pairs of layers, in the model's order.
        left: Why each other layer with weights was left as it is towards what follows, by name.
    """

    pairs: tuple[EqualizedPair, ...]
    left: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain values for JSON."""
        return {"pairs": [pair.to_dict() for pair in self.pairs], "left": dict(self.left)}


def equalize(model: Any, representative_data: Any = None) -> keras.Model:
    """Returns a float model that computes the same, with channels of more equal ranges.

    Where a layer's channel i passes only through what commutes with a positive factor, as a
    ReLU does, to one layer that takes it, its weights may be divided by s_i and those that take
    it be multiplied. Without data

        s_i = sqrt(r1_i / r2_i),  so that afterwards  r1_i / s_i = r2_i · s_i = sqrt(r1_i · r2_i)

    with r the largest size of the weights that give the channel and of those that take it,
    batch normalization folded in (Nagel et al., arXiv 1906.04721, equation 11). Pairs are taken
    in turn until no scale changes, which also settles convolution, depthwise, convolution.

    That evens out weights that are quantized per tensor. Convolutions are quantized per channel:
    there the gain is in the activations, which have one scale for all channels, and in the
    kernels that take them, whose input channels share one. With data, it is these two that are
    evened out (Xiao et al., arXiv 2211.10438, equation 4 at α = 0.5), and before a depthwise
    layer, each of whose channels has its own scale, the activations alone:

        s_i = c · sqrt(a_i / t_i),   before a depthwise layer  s_i = c · a_i

    with a_i the largest size of the channel's values, t_i the largest share that its weights
    have of the range they are quantized in (a convolution's output channel, a Dense kernel), and
    c such that the s_i are 1 in the geometric mean.

    Pairs are convolutions, depthwise ones and Dense layers, followed by batch normalization, by
    ReLU, LeakyReLU, PReLU or nothing, by pooling, padding, dropout or Flatten. What ends a chain
    stays exact by being left alone: a tensor that goes to several layers, a shared layer, ReLU6
    and every other activation, Add, Concatenate, a nested model. So train with ReLU rather than
    ReLU6 what is to be equalized. Where channels differ little the gain is little.

    Args:
        model: A tf_keras or Keras 3 model, built, not yet quantization-aware. It is not changed.
            A subclassed one must be a graph of layers (see `kdtflite.models.as_functional`).
        representative_data: A few hundred samples as `kdtflite.data.representative` takes them.

    Returns:
        A tf_keras model with the same layers and an attribute `equalization`, not compiled. A
        batch normalization without gamma gets one.

    Raises:
        UnsupportedModelError: The model is quantization-aware, or subclassed and cannot be
            traced, or the result does not compute what the model does.
        DataError: A weight or activation is NaN or infinite, or the data do not fit the model.
    """
    model = in_float32(as_functional(model))
    if any(hasattr(layer, "quantize_config") for layer in model.layers):
        raise UnsupportedModelError(
            f"The model {model.name!r} is quantization-aware already. Pass the float model."
        )
    copy = _copy(model)
    pairs, left = find_pairs(copy)
    weights = {layer.name: _Weights(layer, norm) for layer, norm in _layers(pairs)}
    links = [(weights[pair.first.name], weights[pair.second.name]) for pair in pairs]
    if representative_data is None:
        ranges = _by_weights(links)
    else:
        ranges = _by_activations(links, _largest_values(copy, pairs, representative_data))
    for one in weights.values():
        one.write()
    equalized = tuple(
        EqualizedPair(pair.first.name, pair.second.name, *before_and_after)
        for pair, before_and_after in zip(pairs, ranges, strict=True)
    )
    _check_same_function(model, copy)
    copy.equalization = Equalization(equalized, left)
    say(_said(model.name, equalized))
    return copy


class _Weights:
    """A layer's kernel by input and output channel, and how both are scaled.

    The kernel stands as (..., input channels, output channels); of a depthwise one those are the
    channels and the multiplier, and each entry of the two axes is an output channel.
    """

    def __init__(self, layer: keras.layers.Layer, norm: keras.layers.Layer | None) -> None:
        self.layer, self.norm = layer, norm
        self.depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        kernel = self._variable.numpy().astype(np.float64)
        if not np.isfinite(kernel).all():
            raise DataError(
                f"Expected finite weights. Received: NaN or infinity in layer {layer.name!r}."
            )
        sizes = np.abs(self._turned(kernel)).max(axis=tuple(range(kernel.ndim - 2)))
        if norm is not None:
            folded = norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
            sizes = sizes * np.abs(folded.numpy()).reshape(sizes.shape if self.depthwise else (-1,))
        self.sizes = sizes
        self.input_scale = np.ones((len(sizes), 1))
        self.output_scale = np.ones(sizes.shape if self.depthwise else (1, sizes.shape[1]))

    @property
    def _variable(self) -> Any:
        return self.layer.depthwise_kernel if self.depthwise else self.layer.kernel

    def _turned(self, kernel: Array) -> Array:
        """Returns the kernel with its outputs last, or turns it back."""
        transposed = isinstance(self.layer, keras.layers.Conv2DTranspose)
        return np.swapaxes(kernel, -1, -2) if transposed else kernel

    def output_ranges(self) -> Array:
        """Returns the largest size of the weights that give each output channel."""
        sizes = self.sizes * self.input_scale / self.output_scale
        return np.ravel(sizes) if self.depthwise else sizes.max(axis=0)

    def input_ranges(self, channels: int) -> Array:
        """Returns the largest size of the weights that take each of so many channels.

        After Flatten, a Dense layer takes each channel once for every position.
        """
        sizes = self.sizes * self.input_scale / self.output_scale
        return sizes.max(axis=1).reshape(-1, channels).max(axis=0)

    def input_shares(self, channels: int) -> Array:
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
        """Sets the layer's weights, and those of its batch normalization, scaled."""
        factor = self.input_scale
        if self.norm is None:
            factor = factor / self.output_scale
        kernel = self._turned(self._turned(self._variable.numpy()) * factor)
        self._variable.assign(kernel.astype(np.float32))
        owner = self.layer if self.norm is None else self.norm
        for name in ("bias",) if self.norm is None else ("gamma", "beta"):
            variable = getattr(owner, name, None)
            if variable is not None:
                variable.assign(variable.numpy() / np.ravel(self.output_scale).astype(np.float32))


def _by_weights(links: list[tuple[_Weights, _Weights]]) -> list[tuple[Array, Array]]:
    """Equalizes weights with weights; returns each pair's ranges before and after."""

    def ranges(first: _Weights, second: _Weights) -> Array:
        given = first.output_ranges()
        return np.stack([given, second.input_ranges(len(given))], axis=1)

    before = [ranges(*link) for link in links]
    for _ in range(_SWEEPS):
        largest = 1.0
        for first, second in links:
            scale = _root_of_ratio(*ranges(first, second).T)
            first.divide_output(scale)
            second.multiply_input(scale)
            largest = max(largest, scale.max(), 1 / scale.min())
        if largest < 1 + _SETTLED:
            break
    return list(zip(before, [ranges(*link) for link in links], strict=True))


def _by_activations(
    links: list[tuple[_Weights, _Weights]], largest: list[Array]
) -> list[tuple[Array, Array]]:
    """Equalizes values with the weights that take them; returns the ranges before and after."""
    ranges = []
    for (first, second), values in zip(links, largest, strict=True):
        shares = second.input_shares(len(values))
        root = _root_of_ratio(values, shares)
        scale = root**2 if second.depthwise else root
        scale /= np.exp(np.mean(np.log(scale)))
        first.divide_output(scale)
        second.multiply_input(scale)
        after = values / scale, second.input_shares(len(values))
        ranges.append((np.stack([values, shares], axis=1), np.stack(after, axis=1)))
    return ranges


def _root_of_ratio(one: Array, other: Array) -> Array:
    """Returns sqrt(one / other), and 1 for a channel that is zero on one side."""
    both = (one > 0) & (other > 0)
    return np.sqrt(np.where(both, one, 1.0) / np.where(both, other, 1.0))


def _largest_values(model: keras.Model, pairs: list[Pair], data: Any) -> list[Array]:
    """Returns the largest size of each channel's values where the second layer takes them."""
    taken = keras.Model(model.inputs, [pair.second.input for pair in pairs])
    largest: list[Any] = [0.0] * len(pairs)
    for batch in input_batches(model, data) if pairs else ():
        values = taken(tf.nest.flatten(batch), training=False)
        for i, (pair, value) in enumerate(zip(pairs, tf.nest.flatten(values), strict=True)):
            # Flatten keeps the channels of a position together.
            by_channel = tf.reshape(tf.abs(value), [-1, pair.first.output_shape[-1]])
            largest[i] = np.maximum(largest[i], tf.reduce_max(by_channel, axis=0).numpy())
            if not np.isfinite(largest[i]).all():
                raise DataError(
                    f"The output of layer {pair.first.name!r} is NaN or infinite on the "
                    "representative data. Expected finite values: check the model's weights and "
                    "the data's scaling."
                )
    return [np.asarray(one, np.float64) for one in largest]


def _layers(pairs: list[Pair]) -> list[tuple[keras.layers.Layer, keras.layers.Layer | None]]:
    """Returns every layer of the pairs once, with the batch normalization that follows it."""
    layers = {}
    for pair in pairs:
        for layer, norm in ((pair.second, pair.second_norm), (pair.first, pair.first_norm)):
            layers[layer.name] = (layer, norm)
    return list(layers.values())


def _copy(model: keras.Model) -> keras.Model:
    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer)
        config = layer.get_config()
        if type(layer) is keras.layers.BatchNormalization:
            # Without gamma, ahead of a ReLU, it could not take up a scale.
            config["scale"] = True
        return type(layer).from_config(config)

    with float32_policy(), custom_layers(model):
        copy = keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        weights = layer.get_weights()
        if type(layer) is keras.layers.BatchNormalization and not layer.scale:
            weights.insert(0, np.ones_like(weights[0]))
        copy.get_layer(layer.name).set_weights(weights)
    return copy


def _check_same_function(model: keras.Model, copy: keras.Model) -> None:
    random = np.random.default_rng(0)

    def draw(tensor: Any) -> Any:
        shape = [2, *(size or 16 for size in tensor.shape[1:])]
        if tensor.dtype.is_floating:
            return tf.constant(random.normal(size=shape), tensor.dtype)
        return tf.zeros(shape, tensor.dtype)  # token 0 is in every vocabulary

    inputs = tf.nest.map_structure(draw, getattr(model, "_nested_inputs", model.inputs[0]))
    for name, before, after in zip(
        model.output_names,
        tf.nest.flatten(model(inputs, training=False)),
        tf.nest.flatten(copy(inputs, training=False)),
        strict=True,
    ):
        before, after = tf.cast(before, tf.float32).numpy(), tf.cast(after, tf.float32).numpy()
        largest = float(np.max(np.abs(before - after), initial=0.0))
        # Not ">": NaN is no match either.
        if not largest <= _SAME * float(np.max(np.abs(before), initial=0.0)):
            raise UnsupportedModelError(
                f"Equalization changed what {model.name!r} computes: output {name!r} differs by "
                f"{largest:.3g}. Leave it out for this model."
            )


def _spread(ranges: Array) -> float:
    """Returns how many times the least range but zero goes into the greatest."""
    ranges = ranges[(ranges > 0).all(axis=1)]
    if not len(ranges):
        return 1.0
    return float((ranges.max(axis=0) / ranges.min(axis=0)).max())


def _said(name: str, pairs: tuple[EqualizedPair, ...]) -> str:
    if not pairs:
        return (
            f"Nothing in {name!r} can be equalized: no two layers with weights follow each other "
            "through ReLU alone. model.equalization.left says why, layer by layer."
        )
    widest = max(pairs, key=lambda pair: _spread(pair.before))
    return (
        f"Equalized {len(pairs)} pairs of layers in {name!r}. Ranges of channels differed most "
        f"from {widest.first} to {widest.second}: {_spread(widest.before):.3g} times before, "
        f"{_spread(widest.after):.3g} after."
    )
