"""A Keras 3 graph, rebuilt node by node with tf_keras layers."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.graphs import map_structure
from kdtflite.models.keras3_configs import (
    describe,
    is_built_in,
    is_supported,
    layer_from_config,
    refuse_layer,
)
from kdtflite.models.keras3_operations import call_operation, float32_instead

__all__ = ["Rebuilder", "input_structure", "kind_of_model"]

_ADVICE = (
    "Use the built-in Keras layer that computes the same, or rebuild the model with tf_keras "
    "(`import tf_keras as keras`)."
)


def kind_of_model(obj: Any) -> str | None:
    """Returns "sequential", "functional", "subclassed", or None for what is no Keras 3 model."""
    bases = {(base.__module__, base.__name__): base for base in type(obj).__mro__}
    for kind, key in (
        ("sequential", ("keras.src.models.sequential", "Sequential")),
        ("functional", ("keras.src.models.functional", "Functional")),
    ):
        if key in bases:
            # A subclass with its own train_step is fine; one with its own call() is opaque.
            return kind if type(obj).call is bases[key].call else "subclassed"  # type: ignore[attr-defined]
    return "subclassed" if ("keras.src.models.model", "Model") in bases else None


def input_structure(source: Any) -> Any:
    """Returns the symbolic inputs of a Keras 3 model with a graph, as it is called with them."""
    return map_structure(lambda tensor: tensor, _graph(source)._inputs_struct)


class Rebuilder:
    """Builds tf_keras layers and models for Keras 3 ones; shared layers stay shared.

    Usage: `check(model)`, then `model(model)`, then `copy_weights()` and `copy_trainable(model)`.
    """

    def __init__(self) -> None:
        self._targets: dict[int, keras.layers.Layer] = {}
        self._pairs: list[tuple[Any, keras.layers.Layer]] = []

    def check(self, source: Any) -> None:
        """Raises for the first layer, however deep, that cannot be carried over."""
        if kind_of_model(source) is not None:
            inner = source.layers
        elif type(source).__name__ == "InputLayer" and is_built_in(source):
            if getattr(source, "sparse", False) or getattr(source, "ragged", False):
                refuse_layer(describe(source), "it is sparse or ragged.", "Use a dense input.")
            inner = []
        elif not is_built_in(source) or not is_supported(source):
            refuse_layer(describe(source), _why(source), _ADVICE)
        else:
            inner = _wrapped(source)
        for layer in inner:
            self.check(layer)

    def model(self, source: Any) -> keras.Model:
        """Rebuilds a Keras 3 Sequential or Functional model."""
        if id(source) not in self._targets:
            build = self._sequential if kind_of_model(source) == "sequential" else self._functional
            self._targets[id(source)] = build(source)
        return self._targets[id(source)]

    def layer(self, source: Any) -> keras.layers.Layer:
        """Rebuilds a layer, or a model used as one; the same source gives the same target."""
        if kind_of_model(source) is not None:
            return self.model(source)
        if id(source) not in self._targets:
            self._targets[id(source)] = self._leaf(source)
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
        """Copies the `trainable` flags, outer before inner: setting one sets all inside it."""
        self._targets[id(source)].trainable = source.trainable
        inner = source.layers if kind_of_model(source) is not None else _wrapped(source)
        for layer in inner:
            if id(layer) in self._targets:
                self.copy_trainable(layer)

    def _sequential(self, source: Any) -> keras.Model:
        target = keras.Sequential(name=source.name)
        target.add(_input(source.inputs[0]))
        for layer in source.layers:
            _called(layer, target.add, self.layer(layer))
        return target

    def _functional(self, source: Any) -> keras.Model:
        tensors: dict[int, Any] = {}
        names: set[str] = set()

        def known(value: Any) -> Any:
            return tensors.get(id(value), value)

        for tensor in source.inputs:
            tensors[id(tensor)] = _input(tensor)
        for depth in sorted(source._nodes_by_depth, reverse=True):
            for node in source._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                args = [map_structure(known, value) for value in node.arguments.args]
                kwargs = {
                    key: map_structure(known, value)
                    for key, value in node.arguments.kwargs.items()
                    if value is not None and not _is_implicit_mask(key, value, node)
                }
                if hasattr(node.operation, "get_weights"):
                    args = [list(value) if isinstance(value, tuple) else value for value in args]
                    layer = self.layer(node.operation)
                    outputs = _called(node.operation, layer, *args, **kwargs)
                else:
                    outputs = call_operation(
                        node.operation,
                        args,
                        kwargs,
                        dtype=float32_instead(node.outputs[0].dtype),
                        name=_free_name(node.operation.name, names),
                    )
                for symbol, output in zip(node.outputs, _flat(outputs), strict=True):
                    tensors[id(symbol)] = output
        return keras.Model(
            inputs=map_structure(known, source._inputs_struct),
            outputs=map_structure(known, source._outputs_struct),
            name=source.name,
        )

    def _leaf(self, source: Any) -> keras.layers.Layer:
        kind = type(source).__name__
        if kind == "TimeDistributed":
            # The inner layer is passed on as an object, and notes its own weights.
            target = layer_from_config(source, layer=self.layer(source.layer))
        elif kind == "Bidirectional":
            inner = [source.forward_layer, source.backward_layer]
            forward, backward = map(self._recurrent, inner)
            # tf_keras puts the prefixes before the names again.
            forward._name = forward.name.removeprefix("forward_")
            backward._name = backward.name.removeprefix("backward_")
            target = keras.layers.Bidirectional(
                forward, merge_mode=source.merge_mode, backward_layer=backward, name=source.name
            )
            # Not those given: tf_keras makes its own copy of the first.
            for one, other in zip(
                inner, (target.forward_layer, target.backward_layer), strict=True
            ):
                self._targets[id(one)] = other
        else:
            target = self._recurrent(source)
        # Normalization's statistics are in its configuration; TimeDistributed has no weights else.
        if kind not in ("Normalization", "TimeDistributed"):
            self._pairs.append((source, target))
        return target

    def _recurrent(self, source: Any) -> keras.layers.Layer:
        """Builds a layer, with the cells inside it if it is one that has some."""
        if type(source).__name__ == "RNN":
            return layer_from_config(source, cell=self._recurrent(source.cell))
        if type(source).__name__ == "StackedRNNCells":
            return layer_from_config(source, cells=[self._recurrent(cell) for cell in source.cells])
        return layer_from_config(source)


def _graph(source: Any) -> Any:
    return source._functional if kind_of_model(source) == "sequential" else source


def _wrapped(layer: Any) -> list[Any]:
    """Returns the layers that a built-in layer works through."""
    kind = type(layer).__name__
    if kind == "TimeDistributed":
        return [layer.layer]
    if kind == "Bidirectional":
        return [layer.forward_layer, layer.backward_layer]
    if kind == "RNN":
        return [layer.cell]
    return list(layer.cells) if kind == "StackedRNNCells" else []


def _why(layer: Any) -> str:
    if type(layer).__name__ == "Lambda":
        return "a Lambda layer is Python code."
    if not is_built_in(layer):
        return "it is a custom layer with weights of its own."
    if type(layer).__name__ in ("StringLookup", "TextVectorization"):
        return "it takes strings, which no integer kernel does; give the model numbers."
    if type(layer).__name__ == "SpectralNormalization":
        # tf_keras 2.21 has one that builds with the InputSpec of tf.keras, which is Keras 3's.
        return f"tf_keras' own cannot be built; its inner {layer.layer.name!r} computes the same."
    return "tf_keras has no layer that computes the same."


def _called(source: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a rebuilt layer; what tf_keras refuses is refused by the layer's name."""
    try:
        return call(*args, **kwargs)
    except UnsupportedModelError:
        raise
    # tf_keras raises anything: ValueError, TypeError, AttributeError, tf.errors.OpError ...
    except Exception as error:
        reason = " ".join(str(error).split())
        refuse_layer(describe(source), f"tf_keras' own refuses it: {reason[:300]}", _ADVICE)


def _is_implicit_mask(key: str, value: Any, node: Any) -> bool:
    """Says whether an argument is the mask that Keras found on the inputs, as tf_keras will too."""
    if not key.endswith("mask"):
        return False
    found = [getattr(tensor, "_keras_mask", None) for tensor in node.input_tensors]
    values = value if isinstance(value, list | tuple) else [value]
    return all(one is None or any(one is mask for mask in found) for one in values)


def _input(tensor: Any) -> Any:
    # Not the tensor's own name, which may be "keras_tensor_5".
    name = tensor._keras_history.operation.name
    shape = tuple(tensor.shape)
    dtype = float32_instead(tensor.dtype)
    return keras.Input(shape[1:], batch_size=shape[0], dtype=dtype, name=name)


def _free_name(name: str, used: set[str]) -> str:
    while name in used:
        name += "_again"  # an operation that was called twice
    used.add(name)
    return name


def _flat(outputs: Any) -> list[Any]:
    """Flattens what a layer returned in Keras 3's order: dicts by sorted key."""
    if isinstance(outputs, dict):
        return [leaf for key in sorted(outputs) for leaf in _flat(outputs[key])]
    if isinstance(outputs, list | tuple):
        return [leaf for item in outputs for leaf in _flat(item)]
    return [outputs]
