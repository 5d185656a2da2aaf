"""Rebuilds a Keras 3 graph node by node with tf_keras layers."""

from __future__ import annotations

from typing import Any

import keras as keras3
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.graphs import is_graph, map_structure
from kdtflite.models.keras3.configs import (
    build_layer,
    describe,
    is_built_in,
    is_supported,
    refuse_layer,
)
from kdtflite.models.keras3.operations import call_operation, to_float32
from kdtflite.models.keras_internals import get_mask, list_nodes, rename

__all__ = ["Rebuilder", "get_symbolic_inputs"]

_ADVICE = (
    "Use the built-in Keras layer that computes the same, or rebuild the model with tf_keras "
    "(`import tf_keras as keras`)."
)


def get_symbolic_inputs(source: Any) -> Any:
    """Returns the symbolic inputs of a Keras 3 graph in the structure that its call takes."""
    # A Sequential model holds its graph.
    graph = getattr(source, "_functional", None) or source
    return map_structure(lambda tensor: tensor, graph._inputs_struct)


class Rebuilder:
    """Builds tf_keras layers and models for Keras 3 ones; shared layers stay shared.

    Call `check(graph)`, `build_model(graph)`, `copy_weights()` and `copy_trainable(graph)` in turn.
    """

    def __init__(self) -> None:
        self._targets: dict[int, keras.layers.Layer] = {}
        self._pairs: list[tuple[Any, keras.layers.Layer]] = []

    def check(self, source: Any) -> None:
        """Raises for the first layer, however deep, that cannot be carried over."""
        if is_graph(source):
            inner = source.layers
        elif type(source).__name__ == "InputLayer" and is_built_in(source):
            if getattr(source, "sparse", False) or getattr(source, "ragged", False):
                refuse_layer(describe(source), "it is sparse or ragged.", "Use a dense input.")
            inner = []
        elif not is_built_in(source) or not is_supported(source):
            refuse_layer(describe(source), _explain(source), _ADVICE)
        else:
            inner = _list_wrapped(source)
        for layer in inner:
            self.check(layer)

    def build_model(self, source: Any) -> keras.Model:
        """Rebuilds a Keras 3 Sequential or Functional model."""
        if id(source) not in self._targets:
            is_sequential = isinstance(source, keras3.Sequential)
            build = self._build_sequential if is_sequential else self._build_functional
            self._targets[id(source)] = build(source)
        return self._targets[id(source)]

    def build_layer(self, source: Any) -> keras.layers.Layer:
        """Rebuilds a layer, or a model used as one; the same source gives the same target."""
        if isinstance(source, keras3.Model):
            return self.build_model(source)
        if id(source) not in self._targets:
            self._targets[id(source)] = self._build_leaf(source)
        return self._targets[id(source)]

    def copy_weights(self) -> None:
        """Copies weights layer by layer, in order, each checked by shape.

        Raises:
            UnsupportedModelError: A layer has other weights in tf_keras than in Keras 3.
        """
        for source, target in self._pairs:
            values = source.get_weights()
            received = [tuple(value.shape) for value in values]
            expected = [tuple(value.shape) for value in target.weights]
            if received != expected:
                refuse_layer(
                    describe(source),
                    f"its weights have the shapes {received}, tf_keras' layer expects {expected}.",
                    _ADVICE,
                )
            target.set_weights(values)

    def copy_trainable(self, source: Any) -> None:
        """Copies the `trainable` flags, outer first, since setting one sets all inside it."""
        self._targets[id(source)].trainable = source.trainable
        inner = source.layers if isinstance(source, keras3.Model) else _list_wrapped(source)
        for layer in inner:
            if id(layer) in self._targets:
                self.copy_trainable(layer)

    def _build_sequential(self, source: Any) -> keras.Model:
        target = keras.Sequential(name=source.name)
        target.add(_make_input(source.inputs[0]))
        for layer in source.layers:
            _call(layer, target.add, self.build_layer(layer))
        return target

    def _build_functional(self, source: Any) -> keras.Model:
        tensors: dict[int, Any] = {}
        names: set[str] = set()

        def look_up(value: Any) -> Any:
            return tensors.get(id(value), value)

        for tensor in source.inputs:
            tensors[id(tensor)] = _make_input(tensor)
        for node in list_nodes(source):
            if node.is_input:
                continue
            args = [map_structure(look_up, value) for value in node.arguments.args]
            kwargs = {
                key: map_structure(look_up, value)
                for key, value in node.arguments.kwargs.items()
                if value is not None and not _is_implicit_mask(key, value, node)
            }
            if hasattr(node.operation, "get_weights"):
                args = [list(value) if isinstance(value, tuple) else value for value in args]
                layer = self.build_layer(node.operation)
                outputs = _call(node.operation, layer, *args, **kwargs)
            else:
                outputs = call_operation(
                    node.operation,
                    args,
                    kwargs,
                    dtype=to_float32(node.outputs[0].dtype),
                    name=_find_free_name(node.operation.name, names),
                )
            for symbol, output in zip(node.outputs, tf.nest.flatten(outputs), strict=True):
                tensors[id(symbol)] = output
        return keras.Model(
            inputs=map_structure(look_up, source._inputs_struct),
            outputs=map_structure(look_up, source._outputs_struct),
            name=source.name,
        )

    def _build_leaf(self, source: Any) -> keras.layers.Layer:
        kind = type(source).__name__
        if kind == "TimeDistributed":
            # The inner layer is passed on as an object and registers its own weights.
            target = build_layer(source, layer=self.build_layer(source.layer))
        elif kind == "Bidirectional":
            inner = [source.forward_layer, source.backward_layer]
            forward, backward = map(self._build_recurrent, inner)
            # tf_keras adds the prefixes to the names again.
            rename(forward, forward.name.removeprefix("forward_"))
            rename(backward, backward.name.removeprefix("backward_"))
            target = keras.layers.Bidirectional(
                forward, merge_mode=source.merge_mode, backward_layer=backward, name=source.name
            )
            # Not the given ones: tf_keras copies the first.
            for one, other in zip(
                inner, (target.forward_layer, target.backward_layer), strict=True
            ):
                self._targets[id(one)] = other
        else:
            target = self._build_recurrent(source)
        # Normalization has its statistics in its configuration; TimeDistributed has no weights.
        if kind not in ("Normalization", "TimeDistributed"):
            self._pairs.append((source, target))
        return target

    def _build_recurrent(self, source: Any) -> keras.layers.Layer:
        """Builds a layer with the cells inside it, if there are any."""
        if type(source).__name__ == "RNN":
            return build_layer(source, cell=self._build_recurrent(source.cell))
        if type(source).__name__ == "StackedRNNCells":
            return build_layer(source, cells=[self._build_recurrent(cell) for cell in source.cells])
        return build_layer(source)


def _list_wrapped(layer: Any) -> list[Any]:
    """Returns the layers inside a built-in layer."""
    kind = type(layer).__name__
    if kind == "TimeDistributed":
        return [layer.layer]
    if kind == "Bidirectional":
        return [layer.forward_layer, layer.backward_layer]
    if kind == "RNN":
        return [layer.cell]
    return list(layer.cells) if kind == "StackedRNNCells" else []


def _explain(layer: Any) -> str:
    if type(layer).__name__ == "Lambda":
        return "a Lambda layer is Python code."
    if not is_built_in(layer):
        return "it is a custom layer with weights of its own."
    if type(layer).__name__ in ("StringLookup", "TextVectorization"):
        return "it takes strings, which no integer kernel does; give the model numbers."
    if type(layer).__name__ == "SpectralNormalization":
        # That of tf_keras 2.21 uses the InputSpec of tf.keras, which is Keras 3's.
        return f"tf_keras' own cannot be built; its inner {layer.layer.name!r} computes the same."
    return "tf_keras has no layer that computes the same."


def _call(source: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a rebuilt layer; if tf_keras refuses it, the error names the layer."""
    try:
        return call(*args, **kwargs)
    except UnsupportedModelError:
        raise
    # tf_keras raises anything: ValueError, TypeError, AttributeError, tf.errors.OpError ...
    except Exception as error:
        reason = " ".join(str(error).split())
        refuse_layer(describe(source), f"tf_keras' own refuses it: {reason[:300]}", _ADVICE)


def _is_implicit_mask(key: str, value: Any, node: Any) -> bool:
    """Says whether an argument is the mask of the inputs, which tf_keras will find by itself."""
    if not key.endswith("mask"):
        return False
    found = [get_mask(tensor) for tensor in node.input_tensors]
    values = value if isinstance(value, list | tuple) else [value]
    return all(one is None or any(one is mask for mask in found) for one in values)


def _make_input(tensor: Any) -> Any:
    # Not the tensor's own name, which may be "keras_tensor_5".
    name = tensor._keras_history.operation.name
    shape = tuple(tensor.shape)
    dtype = to_float32(tensor.dtype)
    return keras.Input(shape[1:], batch_size=shape[0], dtype=dtype, name=name)


def _find_free_name(name: str, used: set[str]) -> str:
    while name in used:
        name += "_again"  # an operation that is called twice
    used.add(name)
    return name
