"""A Functional model as a list of calls, and a new graph built from such a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras_internals import (
    get_input_structure,
    get_output_structure,
    is_symbolic,
    list_nodes,
)

__all__ = ["Call", "build_like", "is_symbolic", "list_calls", "substitute"]


@dataclass(frozen=True)
class Call:
    """One use of a layer in a graph.

    Attributes:
        layer: The layer; one that is shared has several calls.
        args: Its positional arguments, with symbolic tensors inside.
        kwargs: Its named arguments, likewise.
        outputs: The structure of symbolic tensors that it gave.
    """

    layer: keras.layers.Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any

    @property
    def inputs(self) -> list[Any]:
        """The symbolic tensors among the arguments, in their order."""
        flat = tf.nest.flatten((self.args, self.kwargs))
        return [value for value in flat if is_symbolic(value)]


def list_calls(model: keras.Model) -> list[Call]:
    """Returns the calls of a Functional or Sequential model, each after the calls it depends on."""
    return [
        Call(node.layer, tuple(node.call_args), dict(node.call_kwargs), node.outputs)
        for node in list_nodes(model)
        if not node.is_input
    ]


def substitute(structure: Any, tensors: dict[int, Any]) -> Any:
    """Returns `structure` with each symbolic tensor replaced by the one noted for its id."""
    return tf.nest.map_structure(
        lambda value: tensors[id(value)] if is_symbolic(value) else value, structure
    )


def build_like(
    source: keras.Model, build: Callable[[Any, dict[int, Any]], None], name: str | None = None
) -> keras.Model:
    """Builds a model with the inputs and outputs of `source` around another graph.

    Args:
        source: The model whose inputs (names, shapes, dtypes, structure) are taken.
        build: Called with the source and a dict from the id of each of its input tensors to the
            new input; adds the new tensor of each of its outputs.
        name: Name of the new model.
    """
    tensors: dict[int, Any] = {}
    for old, layer_name in zip(source.inputs, source.input_names, strict=True):
        tensors[id(old)] = keras.Input(
            batch_size=old.shape[0], shape=tuple(old.shape[1:]), dtype=old.dtype, name=layer_name
        )
    new_inputs = [tensors[id(old)] for old in source.inputs]
    build(source, tensors)
    inputs = tf.nest.pack_sequence_as(get_input_structure(source), new_inputs)
    outputs = substitute(get_output_structure(source), tensors)
    return keras.Model(inputs, outputs, name=name or source.name)
