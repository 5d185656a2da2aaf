"""Pairs of layers between which a positive factor on a channel can be moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

__all__ = ["Pair", "find_pairs"]

L = keras.layers

# f(s · x) = s · f(x) for s > 0.
_ACTIVATIONS = (keras.activations.linear, keras.activations.relu, tf.nn.relu, tf.nn.leaky_relu)
# What gives each channel from that channel alone, and s times as much from s times as much.
_CHANNEL_BY_CHANNEL = (
    L.ActivityRegularization,
    L.AveragePooling1D,
    L.AveragePooling2D,
    L.Cropping1D,
    L.Cropping2D,
    L.Dropout,
    L.GaussianDropout,
    L.GlobalAveragePooling1D,
    L.GlobalAveragePooling2D,
    L.GlobalMaxPooling1D,
    L.GlobalMaxPooling2D,
    L.LeakyReLU,
    L.MaxPooling1D,
    L.MaxPooling2D,
    L.PReLU,
    L.SpatialDropout1D,
    L.SpatialDropout2D,
    L.UpSampling1D,
    L.UpSampling2D,
    L.ZeroPadding1D,
    L.ZeroPadding2D,
)
_WEIGHTED = (L.Conv1D, L.Conv2D, L.Conv2DTranspose, L.Dense, L.DepthwiseConv2D)


@dataclass(frozen=True)
class Pair:
    """A layer that gives channels and the one that takes them.

    Attributes:
        first: The layer that gives them.
        first_norm: The batch normalization right behind it, if there is one.
        second: The layer that takes them.
        second_norm: The batch normalization right behind that.
    """

    first: keras.layers.Layer
    first_norm: keras.layers.Layer | None
    second: keras.layers.Layer
    second_norm: keras.layers.Layer | None


def find_pairs(model: keras.Model) -> tuple[list[Pair], dict[str, str]]:
    """Returns the pairs in `model`, in its order, and why its other layers with weights give none.

    Args:
        model: A Sequential or Functional tf_keras model.
    """
    graph = _Graph(model)
    pairs, left = [], {}
    for layer in model.layers:
        if type(layer) not in _WEIGHTED:
            continue
        second = graph.taker(layer)
        if isinstance(second, str):
            left[layer.name] = second
        else:
            pairs.append(Pair(layer, graph.norm(layer), second, graph.norm(second)))
    return pairs, left


class _Graph:
    """Which layer's output goes where in a model."""

    def __init__(self, model: keras.Model) -> None:
        self.calls: dict[str, int] = {}
        self.takers: dict[str, list[Any]] = {}
        self.outputs = {tensor._keras_history.layer.name for tensor in model.outputs}
        for nodes in model._nodes_by_depth.values():
            for node in nodes:
                layer = node.layer
                self.calls[layer.name] = self.calls.get(layer.name, 0) + 1
                for before, *_ in node.iterate_inbound():
                    self.takers.setdefault(before.name, []).append(layer)

    def next(self, layer: keras.layers.Layer) -> keras.layers.Layer | str:
        """Returns the only layer that takes the output of `layer`, or why there is none."""
        if self.calls[layer.name] > 1:
            return f"{layer.name} is used {self.calls[layer.name]} times"
        if layer.name in self.outputs:
            return f"{layer.name} is an output of the model"
        takers = self.takers.get(layer.name, [])
        if len(takers) != 1:
            return f"the output of {layer.name} goes to {len(takers)} layers"
        return takers[0]

    def norm(self, layer: keras.layers.Layer) -> keras.layers.Layer | None:
        """Returns the batch normalization that `layer` is folded with, if there is one."""
        after = self.next(layer)
        if isinstance(after, str) or type(after) is not L.BatchNormalization:
            return None
        linear = getattr(layer, "activation", None) is keras.activations.linear
        last = list(after.axis) == [len(layer.output_shape) - 1]
        return after if linear and last and self.calls[after.name] == 1 else None

    def taker(self, layer: keras.layers.Layer) -> keras.layers.Layer | str:
        """Returns the layer that a factor on a channel of `layer` can be moved to, or why none."""
        if not _channels_last(layer):
            return f"{layer.name} has its channels first"
        if layer.activation not in _ACTIVATIONS:
            return f"{layer.name} has the activation {_name(layer.activation)}"
        norm = self.norm(layer)
        flattened = False
        at = layer if norm is None else norm
        while True:
            after = self.next(at)
            if isinstance(after, str):
                return after
            if type(after) in _WEIGHTED:
                return self._fitting(after, flattened)
            why = _stops(after)
            if why:
                return why
            flattened = flattened or type(after) is L.Flatten
            at = after

    def _fitting(self, layer: keras.layers.Layer, flattened: bool) -> keras.layers.Layer | str:
        if self.calls[layer.name] > 1:
            return f"{layer.name} is used {self.calls[layer.name]} times"
        if getattr(layer, "groups", 1) > 1:
            return f"{layer.name} has groups"
        if not _channels_last(layer):
            return f"{layer.name} has its channels first"
        if flattened and type(layer) is not L.Dense:
            return f"{layer.name} takes flattened channels"
        return layer


def _stops(layer: keras.layers.Layer) -> str | None:
    """Returns why a factor cannot pass `layer`, or None where it can."""
    kind = type(layer)
    if kind is L.Activation:
        if layer.activation in _ACTIVATIONS:
            return None
        return f"{layer.name} is the activation {_name(layer.activation)}"
    if kind is L.ReLU:
        if layer.max_value is None and not layer.threshold:
            return None
        limits = f"max_value={layer.max_value}, threshold={layer.threshold}"
        return f"{layer.name} is a ReLU with {limits}"
    if (kind in _CHANNEL_BY_CHANNEL or kind is L.Flatten) and _channels_last(layer):
        return None
    return f"{layer.name} is a {kind.__name__}"


def _channels_last(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "data_format", None) in (None, "channels_last")


def _name(activation: Any) -> str:
    return getattr(activation, "__name__", type(activation).__name__)
