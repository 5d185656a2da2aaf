"""Rewrites a float model, layer by layer, into layers that have an integer kernel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras_internals import (
    flatten_inputs,
    flatten_layers,
    get_mask,
    get_output_structure,
)
from kdtflite.quantization.graph import Call, build_like, is_symbolic, list_calls, substitute
from kdtflite.quantization.kernels import KERNELS, find_kernel
from kdtflite.quantization.rewrites.context import Graph, LayerParts
from kdtflite.quantization.rewrites.sequences import rewrite_on_rows
from kdtflite.quantization.suitability import refuse_state

__all__ = ["rewrite", "unroll_loops"]

L = keras.layers


def rewrite(model: keras.Model) -> tuple[keras.Model, dict[str, str]]:
    """Returns a flat model that computes the same, and where each of its layers comes from.

    Nested models are opened. Layers that TensorFlow Lite computes in float only, or with one scale
    for many channels, become others. Weights are copied.

    Args:
        model: A Functional or Sequential model in float32. It is not changed.

    Returns:
        The new model, and the path of the old layer ("outer/inner") by the name of each new one.
    """
    rewriter = _Rewriter(model)
    new = build_like(model, rewriter.run)
    names = {layer.name for layer in new.layers}
    return new, {name: old for name, old in rewriter.graph.origin.items() if name in names}


def unroll_loops(model: keras.Model) -> keras.Model:
    """Returns a model whose recurrent layers are unrolled; `model` itself where none is a loop.

    The converter of TensorFlow 2.21 fails on a loop over steps whose batch has no fixed size,
    whatever the target. Layers that cannot be unrolled stay.

    Raises:
        UnsupportedModelError: A recurrent layer is stateful.
    """
    layers = [layer for layer in flatten_layers(model) if isinstance(layer, L.RNN)]
    for layer in layers:
        refuse_state(layer)
    return model if all(layer.unroll for layer in layers) else rewrite(model)[0]


class _Rewriter:
    def __init__(self, model: keras.Model) -> None:
        leaves = _list_leaves(model)
        shared = Counter(layer.name for _, layer in leaves)
        names, reserved = {}, set(shared)
        for path, layer in leaves:
            if shared[layer.name] > 1 and "/" in path:
                name = path.replace("/", "_")
                while name in reserved:
                    name += "_"
                names[id(layer)] = name
                reserved.add(name)
        folding = frozenset(kind for kind, row in KERNELS.items() if row.folds_batch_norm)
        self.graph = Graph(folding, names=names, reserved=reserved)

    def run(self, model: keras.Model, tensors: dict[int, Any], path: str = "") -> None:
        """Adds the new tensor of each layer of `model`, computed from the inputs in `tensors`."""
        calls = list_calls(model)
        users: dict[int, list[Any]] = {}
        for call in calls:
            for tensor in call.inputs:
                users.setdefault(id(tensor), []).append(call.layer)
        for output in tf.nest.flatten(model.outputs):
            users.setdefault(id(output), []).append(None)
        for call in calls:
            args = substitute(call.args, tensors)
            kwargs = substitute(call.kwargs, tensors)
            if isinstance(call.layer, keras.Model):
                outputs = self._open(call.layer, args, f"{path}{call.layer.name}/")
            elif type(call.layer) is L.TimeDistributed and args[0].shape[1] is not None:
                outputs = self._distribute(call.layer, args[0], path)
            else:
                outputs = self._replace(call, args, kwargs, users, path)
            for old, new in zip(
                tf.nest.flatten(call.outputs), tf.nest.flatten(outputs), strict=True
            ):
                tensors[id(old)] = new
                if get_mask(old) is not None or (path and _passes_mask_on(call, old)):
                    self._carry_mask(new, args)

    def _open(self, inner: keras.Model, args: tuple[Any, ...], path: str) -> Any:
        """Returns the outputs of a nested model, which becomes part of the graph around it."""
        given = flatten_inputs(inner, args[0])
        tensors = {id(old): new for old, new in zip(inner.inputs, given, strict=True)}
        self.run(inner, tensors, path)
        return substitute(get_output_structure(inner), tensors)

    def _distribute(self, layer: Any, x: Any, path: str) -> Any:
        """Returns the outputs of a layer or model for all steps, which are taken as samples."""
        steps, inner = LayerParts(layer, path + layer.name, self.graph), layer.layer
        samples = steps.add_op(tf.reshape, "steps")(x, [-1, *x.shape[2:]])
        if isinstance(inner, keras.Model):
            y = self._open(inner, (samples,), f"{path}{layer.name}/")
        else:
            parts = LayerParts(inner, path + layer.name, self.graph)
            y = self._apply_rule(parts, (samples,), {})
        return steps.add_op(tf.reshape)(y, [-1, x.shape[1], *y.shape[1:]])

    def _replace(
        self,
        call: Call,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        users: dict[int, list[Any]],
        path: str,
    ) -> Any:
        layer = call.layer
        outputs = tf.nest.flatten(call.outputs)
        parts = LayerParts(
            layer,
            path + layer.name,
            self.graph,
            followers=tuple(users.get(id(outputs[0]), ())),
            is_only_user=bool(call.inputs) and len(users[id(call.inputs[0])]) == 1,
        )
        return self._apply_rule(parts, args, kwargs)

    def _apply_rule(self, parts: LayerParts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kernel, new = find_kernel(parts.source), NotImplemented
        if kernel is not None and kernel.rewrite is not None:
            new = kernel.rewrite(parts, *args, **kwargs)
        if new is NotImplemented and kernel is not None and kernel.on_rows and not kwargs:
            new = rewrite_on_rows(parts, args[0])
        if new is NotImplemented:
            new = parts.add_copy()(*args, **kwargs)
        return new

    def _carry_mask(self, new: Any, args: Any) -> None:
        """Notes the mask of the inputs for the new tensor."""
        if id(new) in self.graph.masks:
            return
        given = [self.graph.masks.get(id(x)) for x in tf.nest.flatten(args) if is_symbolic(x)]
        mask = next((mask for mask in given if mask is not None), None)
        if mask is not None and mask.shape[1] == new.shape[1]:
            self.graph.masks[id(new)] = mask
            self.graph.kept_alive.append(new)


def _passes_mask_on(call: Call, output: Any) -> bool:
    """Says whether a layer gives this output the mask of its input.

    Keras' own tensors do not tell inside a nested model, whose graph was built without masks.
    """
    layer = call.layer
    if not layer.supports_masking or not call.inputs:
        return False
    place = [id(each) for each in tf.nest.flatten(call.outputs)].index(id(output))
    if len(call.inputs) > 1:
        return place == 0
    mask = keras.Input(call.inputs[0].shape[1:2], dtype="bool")
    made = layer.compute_mask(call.inputs[0], mask)
    made = list(made) if isinstance(made, list | tuple) else [made]
    return place < len(made) and made[place] is not None


def _list_leaves(model: keras.Model) -> list[tuple[str, Any]]:
    """Returns each layer once, also those of nested models, with its path; no inner inputs."""
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
