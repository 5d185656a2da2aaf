"""Feature taps: the outputs of named layers, nested models included, in one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.step import Observed
from kdtflite.errors import ConfigurationError
from kdtflite.models.keras_internals import (
    conform_inputs,
    count_uses,
    get_mask,
    get_output_structure,
    is_graph_network,
    list_nodes,
)
from kdtflite.models.layer_names import find_image_axes, list_possible_names, strip_prefix

__all__ = ["TappedModel"]

Shape = tuple[int | None, ...]


class TappedModel:
    """A Keras model that also returns the outputs of some of its layers.

    The model itself does not change: nothing is added to its graph, its layers or its files.

    Args:
        model: A tf_keras model; Functional or Sequential where layers are tapped.
        layers: Paths: "name", "outer/inner" for a layer inside a nested model, "name:1" for the
            second output of a layer. A layer that `quantize_aware` wrapped answers to its old name.
        role: "student" or "teacher", for messages.

    Raises:
        ConfigurationError: A layer that does not exist (the message lists them), or one that is
            used several times and so has several outputs.
    """

    def __init__(self, model: keras.Model, layers: Iterable[str], *, role: str) -> None:
        self.model = model
        self._tensors = {path: _find_tensor(model, path, role) for path in dict.fromkeys(layers)}
        self._flat = {
            path: _find_extra_axes(path, tensor) for path, (_, tensor) in self._tensors.items()
        }
        self.shapes: dict[str, Shape] = {
            path: tuple(
                size for axis, size in enumerate(tensor.shape) if axis not in self._flat[path]
            )
            for path, (_, tensor) in self._tensors.items()
        }
        self._executor: Any = None
        if self._tensors:
            wanted: dict[int, dict[str, str]] = {}
            for path, (owner, tensor) in self._tensors.items():
                wanted.setdefault(id(owner), {})[path] = str(id(tensor))
            self._executor = _Executor(model, wanted)

    def __call__(self, x: Any, *, training: bool) -> tuple[Any, dict[str, tf.Tensor]]:
        """Returns the model's outputs and the tapped tensors by path, from one forward pass."""
        if self._executor is None:
            return self.model(x, training=training), {}
        outputs, features = self._executor(x, training=training)
        return outputs, {
            path: tf.squeeze(features[path], axes) if axes else features[path]
            for path, axes in self._flat.items()
        }

    def observe(
        self, x: Any, *, training: bool, recording: contextlib.ExitStack | None = None
    ) -> tuple[Any, Observed]:
        """Returns the outputs, and an Observed whose logits are these outputs.

        Args:
            x: A batch of inputs.
            training: Whether layers behave as in training.
            recording: Given where gradients with respect to the inputs are needed: until it
                closes, computations on the outputs are recorded for them.
        """
        gradient = None
        if recording is not None:
            x = tf.nest.map_structure(tf.convert_to_tensor, x)
            tape = recording.enter_context(
                tf.GradientTape(persistent=True, watch_accessed_variables=False)
            )
            tape.watch(x)

            def gradient(values: tf.Tensor) -> Any:
                with tape.stop_recording():
                    return tape.gradient(values, x)

        outputs, features = self(x, training=training)
        mask = get_mask(outputs)
        return outputs, Observed(outputs, features, gradient, mask)


class _Executor(keras.Model):
    """Runs a Functional model node by node, as Keras does, and keeps some of its tensors.

    A sub-model of the outer graph cannot do this: the tensors of a nested model are not in that
    graph. As a model itself, it passes `training` to the layers.
    """

    def __init__(self, model: keras.Model, wanted: dict[int, dict[str, str]]) -> None:
        super().__init__(name=model.name, autocast=False, dtype="float32")
        self.runs = model
        self._wanted = wanted
        self._inner = {
            id(layer): _Executor(layer, wanted)
            for layer in model.layers
            if isinstance(layer, keras.Model) and _contains(layer, wanted)
        }

    def call(self, inputs: Any, training: bool | None = None) -> tuple[Any, dict[str, tf.Tensor]]:
        """Returns the model's outputs and the kept tensors by path."""
        del training  # layers read it from Keras' call context
        model, uses = self.runs, count_uses(self.runs)
        tensors: dict[str, list[Any]] = {}

        def keep(name: str, tensor: Any) -> None:
            # Keras removes one from the list per use; one more stays for the taps.
            tensors[name] = [tensor] * (uses[name] + 1)

        for reference, given in zip(model.inputs, conform_inputs(model, inputs), strict=True):
            keep(str(id(reference)), given)
        features: dict[str, tf.Tensor] = {}
        for node in list_nodes(model):
            if node.is_input:
                continue
            args, kwargs = node.map_arguments(tensors)
            inner = self._inner.get(id(node.layer))
            if inner is None:
                outputs = node.layer(*args, **kwargs)
            else:
                outputs, kept = inner(*args, **kwargs)
                features.update(kept)
            for name, tensor in zip(node.flat_output_ids, tf.nest.flatten(outputs), strict=True):
                keep(str(name), tensor)
        for path, name in self._wanted.get(id(model), {}).items():
            features[path] = tensors[name][0]
        outputs = [tensors[str(id(tensor))][0] for tensor in model.outputs]
        return tf.nest.pack_sequence_as(get_output_structure(model), outputs), features


def _contains(model: keras.Model, wanted: dict[int, dict[str, str]]) -> bool:
    return id(model) in wanted or any(
        _contains(layer, wanted) for layer in model.layers if isinstance(layer, keras.Model)
    )


def _find_tensor(model: keras.Model, path: str, role: str) -> tuple[keras.Model, Any]:
    """Returns the model that owns the symbolic tensor named by `path`, and the tensor."""
    if not is_graph_network(model):
        raise ConfigurationError(
            f"Expected a Sequential or Functional {role} to tap layers of. Received: "
            f"{model.name!r}, a {type(model).__name__}, which has no graph."
        )
    name, _, output = path.partition(":")
    owner = model
    *outer, last = name.split("/")
    for part in outer:
        layer = _find_layer(owner, part)
        if not isinstance(layer, keras.Model) or not is_graph_network(layer):
            raise _report_unknown(model, path, role)
        _find_node(owner, layer, path, role)  # raises unless it is used once
        owner = layer
    layer = _find_layer(owner, last)
    if layer is None:
        # A layer's own name may contain a slash.
        layer, owner = _find_layer(model, name), model
    if layer is None or (output and not output.isdigit()):
        raise _report_unknown(model, path, role)
    outputs = tf.nest.flatten(_find_node(owner, layer, path, role).outputs)
    index = int(output or 0)
    if index >= len(outputs):
        raise ConfigurationError(
            f"The layer {name!r} of the {role} has {len(outputs)} outputs, numbered from 0. "
            f"Received: {path!r}."
        )
    return owner, outputs[index]


def _find_extra_axes(path: str, tensor: Any) -> tuple[int, ...]:
    """Returns the axes that a layer's output has only because it is held as an image."""
    return find_image_axes(tensor.node.layer.name, path.partition(":")[0].rpartition("/")[2])


def _find_layer(model: keras.Model, name: str) -> Any:
    """Returns the layer called `name`, or the one that a rewrite replaced it with; else None."""
    by_name = {layer.name: layer for layer in model.layers}
    names = list_possible_names(name)
    return next((by_name[known] for known in names if known in by_name), None)


def _find_node(model: keras.Model, layer: Any, path: str, role: str) -> Any:
    """Returns the one use of `layer` in the graph of `model`."""
    nodes = [node for node in list_nodes(model) if node.layer is layer]
    if len(nodes) != 1:
        raise ConfigurationError(
            f"The layer {path!r} is used {len(nodes)} times in the {role} {model.name!r}, so it "
            "has no single output. Tap a layer after one of the uses."
        )
    return nodes[0]


def _report_unknown(model: keras.Model, path: str, role: str) -> ConfigurationError:
    names = list(_list_names(model))
    near = get_close_matches(path, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigurationError(
        f"The {role} {model.name!r} has no layer {path!r}.{hint} Expected one of: "
        f"{', '.join(names)}."
    )


def _list_names(model: keras.Model, prefix: str = "") -> Sequence[str]:
    names: list[str] = []
    for layer in model.layers:
        names.append(prefix + strip_prefix(layer.name))
        if isinstance(layer, keras.Model):
            names.extend(_list_names(layer, f"{names[-1]}/"))
    return names
