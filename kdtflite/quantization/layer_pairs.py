"""Pairs of layers between which a positive factor on a channel can be moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras_internals import get_history, list_nodes
from kdtflite.quantization.kernels import KERNELS

__all__ = ["Pair", "find_pairs"]

L = keras.layers

# f(s · x) = s · f(x) for s > 0.
_ACTIVATIONS = (keras.activations.linear, keras.activations.relu, tf.nn.relu, tf.nn.leaky_relu)


@dataclass(frozen=True)
class Pair:
    """A layer that produces channels and the one that takes them.

    Attributes:
        first: The layer that produces them.
        first_norm: The batch normalization directly after it, if there is one.
        second: The layer that takes them.
        second_norm: The batch normalization directly after that.
    """

    first: keras.layers.Layer
    first_norm: keras.layers.Layer | None
    second: keras.layers.Layer
    second_norm: keras.layers.Layer | None


def find_pairs(model: keras.Model) -> tuple[list[Pair], dict[str, str]]:
    """Returns the pairs in `model`, in its order, and why its other layers with weights form none.

    Args:
        model: A Sequential or Functional tf_keras model.
    """
    graph = _Graph(model)
    pairs, left = [], {}
    for layer in model.layers:
        if not _equalizes(layer):
            continue
        second = graph.find_taker(layer)
        if isinstance(second, str):
            left[layer.name] = second
        else:
            pairs.append(Pair(layer, graph.find_norm(layer), second, graph.find_norm(second)))
    return pairs, left


class _Graph:
    """The connections between the layers of a model."""

    def __init__(self, model: keras.Model) -> None:
        self.calls: dict[str, int] = {}
        self.takers: dict[str, list[Any]] = {}
        self.outputs = {get_history(tensor).layer.name for tensor in model.outputs}
        for node in list_nodes(model):
            layer = node.layer
            self.calls[layer.name] = self.calls.get(layer.name, 0) + 1
            for before, *_ in node.iterate_inbound():
                self.takers.setdefault(before.name, []).append(layer)

    def find_next(self, layer: keras.layers.Layer) -> keras.layers.Layer | str:
        """Returns the only layer that takes the output of `layer`, or why no single one does."""
        if self.calls[layer.name] > 1:
            return f"{layer.name} is used {self.calls[layer.name]} times"
        if layer.name in self.outputs:
            return f"{layer.name} is an output of the model"
        takers = self.takers.get(layer.name, [])
        if len(takers) != 1:
            return f"the output of {layer.name} goes to {len(takers)} layers"
        return takers[0]

    def find_norm(self, layer: keras.layers.Layer) -> keras.layers.Layer | None:
        """Returns the batch normalization that is folded into `layer`, or None."""
        after = self.find_next(layer)
        if isinstance(after, str) or type(after) is not L.BatchNormalization:
            return None
        linear = getattr(layer, "activation", None) is keras.activations.linear
        last = list(after.axis) == [len(layer.output_shape) - 1]
        return after if linear and last and self.calls[after.name] == 1 else None

    def find_taker(self, layer: keras.layers.Layer) -> keras.layers.Layer | str:
        """Returns the layer that can take over a factor of a channel, or why no layer can."""
        if not _is_channels_last(layer):
            return f"{layer.name} has its channels first"
        if layer.activation not in _ACTIVATIONS:
            return f"{layer.name} has the activation {_get_name(layer.activation)}"
        norm = self.find_norm(layer)
        flattened = False
        at = layer if norm is None else norm
        while True:
            after = self.find_next(at)
            if isinstance(after, str):
                return after
            if _equalizes(after):
                return self._check_fit(after, flattened)
            why = _explain_stop(after)
            if why:
                return why
            flattened = flattened or type(after) is L.Flatten
            at = after

    def _check_fit(self, layer: keras.layers.Layer, flattened: bool) -> keras.layers.Layer | str:
        if self.calls[layer.name] > 1:
            return f"{layer.name} is used {self.calls[layer.name]} times"
        if getattr(layer, "groups", 1) > 1:
            return f"{layer.name} has groups"
        if not _is_channels_last(layer):
            return f"{layer.name} has its channels first"
        if flattened and type(layer) is not L.Dense:
            return f"{layer.name} takes flattened channels"
        return layer


def _equalizes(layer: keras.layers.Layer) -> bool:
    kernel = KERNELS.get(type(layer))
    return kernel is not None and kernel.equalizes


def _explain_stop(layer: keras.layers.Layer) -> str | None:
    """Returns the reason why a factor cannot pass `layer`, or None."""
    kind = type(layer)
    if kind is L.Activation:
        if layer.activation in _ACTIVATIONS:
            return None
        return f"{layer.name} is the activation {_get_name(layer.activation)}"
    if kind is L.ReLU:
        if layer.max_value is None and not layer.threshold:
            return None
        limits = f"max_value={layer.max_value}, threshold={layer.threshold}"
        return f"{layer.name} is a ReLU with {limits}"
    kernel = KERNELS.get(kind)
    is_channelwise = kind is L.Flatten or (kernel is not None and kernel.channelwise)
    if is_channelwise and _is_channels_last(layer):
        return None
    return f"{layer.name} is a {kind.__name__}"


def _is_channels_last(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "data_format", None) in (None, "channels_last")


def _get_name(activation: Any) -> str:
    return getattr(activation, "__name__", type(activation).__name__)
