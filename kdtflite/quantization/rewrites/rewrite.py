"""The float model rewritten, layer by layer, into layers that have an integer kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from kdtflite.quantization.graph import Call, calls, is_symbolic, model_of, substitute
from kdtflite.quantization.rewrites import (
    activations,
    attention,
    convolutions,
    normalizations,
    recurrent,
    sequences,
)
from kdtflite.quantization.rewrites.context import Graph, Parts

__all__ = ["rewritten"]

L = keras.layers

# What computes the same on the image behind a sequence as on the sequence.
_ON_ROWS = (
    L.Activation,
    L.ActivityRegularization,
    L.Add,
    L.AlphaDropout,
    L.Concatenate,
    L.Dropout,
    L.GaussianDropout,
    L.GaussianNoise,
    L.LeakyReLU,
    L.Maximum,
    L.Minimum,
    L.Multiply,
    L.ReLU,
    L.Softmax,
    L.Subtract,
)

_RULES: dict[type, Callable[..., Any]] = {
    CustomScaleLayer: normalizations.scaled_sum,
    L.Activation: activations.standalone,
    L.AdditiveAttention: attention.additive_attention,
    L.Attention: attention.attention,
    L.Average: sequences.average,
    L.AveragePooling1D: sequences.pooling_1d,
    L.BatchNormalization: normalizations.batch_normalization,
    L.Bidirectional: recurrent.bidirectional,
    L.Conv1D: convolutions.convolution_1d,
    L.Conv1DTranspose: convolutions.transposed_1d,
    L.Conv2D: convolutions.convolution,
    L.Conv2DTranspose: convolutions.convolution,
    L.Cropping1D: sequences.padding_1d,
    L.Dense: convolutions.dense,
    L.DepthwiseConv1D: convolutions.depthwise_1d,
    L.DepthwiseConv2D: convolutions.convolution,
    L.ELU: activations.standalone,
    L.Embedding: sequences.embedding,
    L.EinsumDense: convolutions.einsum_dense,
    L.GRU: recurrent.recurrent,
    L.GlobalAveragePooling1D: sequences.global_pooling_1d,
    L.GlobalMaxPooling1D: sequences.global_pooling_1d,
    L.GroupNormalization: normalizations.group_normalization,
    L.LSTM: recurrent.recurrent,
    L.LayerNormalization: normalizations.layer_normalization,
    L.Masking: sequences.masking,
    L.MaxPooling1D: sequences.pooling_1d,
    L.MultiHeadAttention: attention.multi_head_attention,
    L.Normalization: normalizations.scaling,
    L.Rescaling: normalizations.scaling,
    L.SeparableConv1D: convolutions.separable,
    L.SeparableConv2D: convolutions.separable,
    L.SimpleRNN: recurrent.recurrent,
    L.ThresholdedReLU: activations.standalone,
    L.UnitNormalization: normalizations.unit_normalization,
    L.UpSampling1D: sequences.padding_1d,
    L.ZeroPadding1D: sequences.padding_1d,
    LayerScale: normalizations.layer_scale,
}


def rewritten(model: keras.Model) -> tuple[keras.Model, dict[str, str]]:
    """Returns a flat model that computes the same, and where each of its layers comes from.

    Nested models are opened. Layers that TensorFlow Lite computes in float only, or that would
    lose by their form (one scale for many channels), become others. Weights are copied.

    Args:
        model: A Functional or Sequential model in float32. It is not changed.

    Returns:
        The new model, and the path of the old layer ("outer/inner") by the name of each new one.
    """
    rewriting = _Rewriting(model)
    new = model_of(model, rewriting.run)
    names = {layer.name for layer in new.layers}
    return new, {name: old for name, old in rewriting.graph.origin.items() if name in names}


class _Rewriting:
    def __init__(self, model: keras.Model) -> None:
        leaves = _leaves(model)
        shared = Counter(layer.name for _, layer in leaves)
        names, reserved = {}, set(shared)
        for path, layer in leaves:
            if shared[layer.name] > 1 and "/" in path:
                name = path.replace("/", "_")
                while name in reserved:
                    name += "_"
                names[id(layer)] = name
                reserved.add(name)
        self.graph = Graph(names=names, reserved=reserved)

    def run(self, model: keras.Model, tensors: dict[int, Any], path: str = "") -> None:
        """Adds the new tensors of all that `model` computes from the inputs in `tensors`."""
        found = calls(model)
        users: dict[int, list[Any]] = {}
        for call in found:
            for tensor in call.inputs:
                users.setdefault(id(tensor), []).append(call.layer)
        for output in tf.nest.flatten(model.outputs):
            users.setdefault(id(output), []).append(None)
        for call in found:
            args = substitute(call.args, tensors)
            kwargs = substitute(call.kwargs, tensors)
            if isinstance(call.layer, keras.Model):
                outputs = self._opened(call.layer, args, f"{path}{call.layer.name}/")
            elif type(call.layer) is L.TimeDistributed and args[0].shape[1] is not None:
                outputs = self._distributed(call.layer, args[0], path)
            else:
                outputs = self._replaced(call, args, kwargs, users, path)
            for old, new in zip(
                tf.nest.flatten(call.outputs), tf.nest.flatten(outputs), strict=True
            ):
                tensors[id(old)] = new
                self._carry_mask(call, old, new, args)

    def _opened(self, inner: keras.Model, args: tuple[Any, ...], path: str) -> Any:
        """Returns what a nested model computes, as part of the graph around it."""
        given = inner._flatten_to_reference_inputs(args[0])
        tensors = {id(old): new for old, new in zip(inner.inputs, given, strict=True)}
        self.run(inner, tensors, path)
        return substitute(inner._nested_outputs, tensors)

    def _distributed(self, layer: Any, x: Any, path: str) -> Any:
        """Returns what a layer or model gives for each step, the steps side by side as samples."""
        steps, inner = Parts(layer, path + layer.name, self.graph), layer.layer
        samples = steps.op(tf.reshape, "steps")(x, [-1, *x.shape[2:]])
        if isinstance(inner, keras.Model):
            y = self._opened(inner, (samples,), f"{path}{layer.name}/")
        else:
            parts = Parts(inner, path + layer.name, self.graph)
            y = self._by_rule(parts, (samples,), {})
        return steps.op(tf.reshape)(y, [-1, x.shape[1], *y.shape[1:]])

    def _replaced(
        self,
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        users: dict[int, list[Any]],
        path: str,
    ) -> Any:
        layer = call.layer
        outputs = tf.nest.flatten(call.outputs)
        parts = Parts(
            layer,
            path + layer.name,
            self.graph,
            followers=tuple(users.get(id(outputs[0]), ())),
            alone=bool(call.inputs) and len(users[id(call.inputs[0])]) == 1,
        )
        return self._by_rule(parts, args, kwargs)

    def _by_rule(self, parts: Parts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer, new = parts.source, NotImplemented
        if type(layer) in _RULES:
            new = _RULES[type(layer)](parts, *args, **kwargs)
        if new is NotImplemented and type(layer) in _ON_ROWS and not kwargs:
            new = sequences.on_rows(parts, args[0])
        if new is NotImplemented:
            new = parts.clone()(*args, **kwargs)
        return new

    def _carry_mask(self, call: Call, old: Any, new: Any, args: Any) -> None:
        """Notes the mask that the old tensor carried for the new one."""
        if getattr(old, "_keras_mask", None) is None:
            return
        if id(new) in self.graph.masks:
            return
        given = [self.graph.masks.get(id(x)) for x in tf.nest.flatten(args) if is_symbolic(x)]
        mask = next((mask for mask in given if mask is not None), None)
        if mask is not None and mask.shape[1] == new.shape[1]:
            self.graph.masks[id(new)] = mask
            self.graph.kept_alive.append(new)


def _leaves(model: keras.Model) -> list[tuple[str, Any]]:
    """Returns each layer once, those of nested models too, with its path; no inner inputs."""
    found: dict[int, tuple[str, Any]] = {}

    def walk(layer: Any, path: str) -> None:
        if isinstance(layer, keras.Model):
            for inner in layer.layers:
                walk(inner, f"{path}{layer.name}/")
        elif not path or not isinstance(layer, L.InputLayer):
            found.setdefault(id(layer), (path + layer.name, layer))
            if isinstance(layer, L.Bidirectional):
                walk(layer.forward_layer, path)
                walk(layer.backward_layer, path)
            elif isinstance(layer, L.TimeDistributed):
                walk(layer.layer, f"{path}{layer.name}/")

    for layer in model.layers:
        walk(layer, "")
    return list(found.values())
