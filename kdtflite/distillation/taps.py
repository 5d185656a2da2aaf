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

__all__ = ["TappedModel"]

Shape = tuple[int | None, ...]

_WRAPPED = "quant_"  # what quantize_aware puts before the name of a layer
# ... and behind that of a layer whose output it holds as an image, with the axes to leave out:
# (batch, 1, steps, channels) and (batch, 1, 1, channels).
_IMAGES = {"_row": (1,), "_point": (1, 2)}


class TappedModel:
    """A Keras model that also gives the outputs of some of its layers.

    The model itself stays as it is: nothing is added to its graph, its layers or what it saves.

    Args:
        model: A tf_keras model; Functional or Sequential where layers are tapped.
        layers: Paths: "name", "outer/inner" for a layer inside a nested model, "name:1" for the
            second output of a layer. A layer that `quantize_aware` wrapped answers to its old name.
        role: "student" or "teacher", for messages.

    Raises:
        ConfigurationError: No such layer (the message lists them), or one that is used several
            times, so that it has no one output.
    """

    def __init__(self, model: keras.Model, layers: Iterable[str], *, role: str) -> None:
        self.model = model
        self._tensors = {path: _tensor(model, path, role) for path in dict.fromkeys(layers)}
        self._flat = {
            path: _extra_axes(path, tensor) for path, (_, tensor) in self._tensors.items()
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
        """Returns the model's outputs and the tapped tensors by path, of one forward pass."""
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
        """Returns the outputs as they are, and what was observed, its logits still those outputs.

        Args:
            x: A batch of inputs.
            training: Whether layers behave as in training.
            recording: Where gradients by the inputs are wanted: until it closes, what is computed
                from the outputs is recorded for them.
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
        mask = getattr(outputs, "_keras_mask", None)
        return outputs, Observed(outputs, features, gradient, mask)


class _Executor(keras.Model):
    """Runs a Functional model node by node, as Keras does, and keeps some tensors on the way.

    A sub-model of the outer graph cannot do it: the tensors of a nested model are not in that
    graph. Being a model itself, it hands `training` on to the layers as any Keras model.
    """

    def __init__(self, model: keras.Model, wanted: dict[int, dict[str, str]]) -> None:
        super().__init__(name=model.name, autocast=False, dtype="float32")
        self.runs = model
        self._wanted = wanted
        self._inner = {
            id(layer): _Executor(layer, wanted)
            for layer in model.layers
            if isinstance(layer, keras.Model) and _holds(layer, wanted)
        }

    def call(self, inputs: Any, training: bool | None = None) -> tuple[Any, dict[str, tf.Tensor]]:
        """Returns the model's outputs and the tensors kept, by path."""
        del training  # layers read it from Keras' call context
        model, uses = self.runs, self.runs._tensor_usage_count
        tensors: dict[str, list[Any]] = {}

        def keep(name: str, tensor: Any) -> None:
            # Keras takes one out of the list a use; one more stays for the taps.
            tensors[name] = [tensor] * (uses[name] + 1)

        for reference, given in zip(
            model.inputs, model._flatten_to_reference_inputs(inputs), strict=True
        ):
            keep(str(id(reference)), model._conform_to_reference_input(given, ref_input=reference))
        features: dict[str, tf.Tensor] = {}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                args, kwargs = node.map_arguments(tensors)
                inner = self._inner.get(id(node.layer))
                if inner is None:
                    outputs = node.layer(*args, **kwargs)
                else:
                    outputs, kept = inner(*args, **kwargs)
                    features.update(kept)
                for name, tensor in zip(
                    node.flat_output_ids, tf.nest.flatten(outputs), strict=True
                ):
                    keep(str(name), tensor)
        for path, name in self._wanted.get(id(model), {}).items():
            features[path] = tensors[name][0]
        outputs = [tensors[str(id(tensor))][0] for tensor in model.outputs]
        return tf.nest.pack_sequence_as(model._nested_outputs, outputs), features


def _holds(model: keras.Model, wanted: dict[int, dict[str, str]]) -> bool:
    return id(model) in wanted or any(
        _holds(layer, wanted) for layer in model.layers if isinstance(layer, keras.Model)
    )


def _tensor(model: keras.Model, path: str, role: str) -> tuple[keras.Model, Any]:
    """Returns the symbolic tensor that `path` names, and the model whose graph it is in."""
    if not getattr(model, "_is_graph_network", False):
        raise ConfigurationError(
            f"Expected a Sequential or Functional {role} to tap layers of. Received: "
            f"{model.name!r}, a {type(model).__name__}, whose graph cannot be seen."
        )
    name, _, output = path.partition(":")
    owner = model
    *outer, last = name.split("/")
    for part in outer:
        layer = _layer(owner, part)
        if not isinstance(layer, keras.Model) or not getattr(layer, "_is_graph_network", False):
            raise _unknown(model, path, role)
        _node(owner, layer, path, role)  # used once
        owner = layer
    layer = _layer(owner, last)
    if layer is None:
        # Layers' own names may hold a slash.
        layer, owner = _layer(model, name), model
    if layer is None or (output and not output.isdigit()):
        raise _unknown(model, path, role)
    outputs = tf.nest.flatten(_node(owner, layer, path, role).outputs)
    index = int(output or 0)
    if index >= len(outputs):
        raise ConfigurationError(
            f"The layer {name!r} of the {role} has {len(outputs)} outputs, numbered from 0. "
            f"Received: {path!r}."
        )
    return owner, outputs[index]


def _extra_axes(path: str, tensor: Any) -> tuple[int, ...]:
    """Returns the axes that a layer's output has only because it is held as an image."""
    name, asked = tensor.node.layer.name, path.partition(":")[0].rpartition("/")[2]
    return next(
        (
            axes
            for image, axes in _IMAGES.items()
            if name.endswith(image) and not asked.endswith(image)
        ),
        (),
    )


def _layer(model: keras.Model, name: str) -> Any:
    """Returns the layer that gives the output of the one called `name` before it was rewritten."""
    by_name = {layer.name: layer for layer in model.layers}
    names = [f"{_WRAPPED}{name}{image}" for image in ("", *_IMAGES)]
    names += [f"{name}{image}" for image in ("", *_IMAGES)]
    return next((by_name[known] for known in names if known in by_name), None)


def _node(model: keras.Model, layer: Any, path: str, role: str) -> Any:
    """Returns the one use of `layer` in the graph of `model`."""
    nodes = [
        node for nodes in model._nodes_by_depth.values() for node in nodes if node.layer is layer
    ]
    if len(nodes) != 1:
        raise ConfigurationError(
            f"The layer {path!r} is used {len(nodes)} times in the {role} {model.name!r}, so its "
            "output is not one tensor. Tap a layer after one of the uses."
        )
    return nodes[0]


def _unknown(model: keras.Model, path: str, role: str) -> ConfigurationError:
    names = list(_names(model))
    near = get_close_matches(path, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigurationError(
        f"The {role} {model.name!r} has no layer {path!r}.{hint} Expected one of: "
        f"{', '.join(names)}."
    )


def _names(model: keras.Model, prefix: str = "") -> Sequence[str]:
    names: list[str] = []
    for layer in model.layers:
        names.append(prefix + layer.name.removeprefix(_WRAPPED))
        if isinstance(layer, keras.Model):
            names.extend(_names(layer, f"{names[-1]}/"))
    return names
