"""What kdtflite needs of tf_keras beyond its public interface, in this one file.

A next version of tf_keras that renames one of these breaks nothing else.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from tf_keras.src.engine.keras_tensor import KerasTensor
from tf_keras.src.layers.core.tf_op_layer import SlicingOpLambda, TFOpLambda

__all__ = [
    "AttentionParts",
    "CustomScaleLayer",
    "KerasTensor",
    "LayerScale",
    "SlicingOpLambda",
    "StochasticDepth",
    "TFOpLambda",
    "conform_inputs",
    "copy_weight_decay_exceptions",
    "count_uses",
    "expects_training",
    "flatten_inputs",
    "flatten_layers",
    "get_build_shapes",
    "get_function_arguments",
    "get_history",
    "get_input_structure",
    "get_mask",
    "get_output_structure",
    "get_schedule",
    "is_graph_network",
    "is_symbolic",
    "list_nodes",
    "rename",
    "replace_attributes",
    "restore_nodes",
    "set_mask",
    "set_output_names",
    "set_own_trainable",
    "unpack_attention",
]


def flatten_layers(layer: Any) -> list[Any]:
    """Returns the layers inside a layer or model of either Keras, at every depth."""
    return list(layer._flatten_layers(include_self=False))


def is_graph_network(model: Any) -> bool:
    """Says whether a model was built as a graph: Functional, or Sequential with known inputs."""
    return bool(getattr(model, "_is_graph_network", False))


def list_nodes(model: Any) -> list[Any]:
    """Returns the nodes of a graph of either Keras, each after those it depends on."""
    # A Sequential model of Keras 3 holds its graph.
    by_depth = (getattr(model, "_functional", None) or model)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


@contextlib.contextmanager
def restore_nodes(layers: list[Any]) -> Iterator[None]:
    """Forgets the graph nodes that the block adds to layers of either Keras."""
    lists = [
        getattr(layer, name) for layer in layers for name in ("_inbound_nodes", "_outbound_nodes")
    ]
    lengths = [len(items) for items in lists]
    try:
        yield
    finally:
        for items, length in zip(lists, lengths, strict=True):
            del items[length:]


@contextlib.contextmanager
def replace_attributes(objects: Iterable[Any], **values: Any) -> Iterator[None]:
    """Gives the attributes of all `objects` these values in the block, and restores them."""
    before = [(each, {name: getattr(each, name) for name in values}) for each in objects]
    for each, old in before:
        for name in old:
            setattr(each, name, values[name])
    try:
        yield
    finally:
        for each, old in before:
            for name, value in old.items():
                setattr(each, name, value)


def get_input_structure(model: keras.Model) -> Any:
    """Returns a model's symbolic inputs as its call takes them: a tensor, or lists and dicts."""
    return getattr(model, "_nested_inputs", model.inputs[0])


def get_output_structure(model: keras.Model) -> Any:
    """Returns a model's symbolic outputs as its call returns them."""
    return getattr(model, "_nested_outputs", model.outputs)


def get_build_shapes(model: keras.Model) -> Any:
    """Returns the input shapes that `build` was called with, in the structure of the inputs."""
    return model._build_input_shape


def flatten_inputs(model: keras.Model, inputs: Any) -> list[Any]:
    """Returns the inputs that a model is called with in the order of `model.inputs`."""
    return list(model._flatten_to_reference_inputs(inputs))


def conform_inputs(model: keras.Model, inputs: Any) -> list[Any]:
    """Does as `flatten_inputs`, and gives each tensor the rank and dtype that the model wants."""
    return [
        model._conform_to_reference_input(given, ref_input=reference)
        for reference, given in zip(model.inputs, flatten_inputs(model, inputs), strict=True)
    ]


def count_uses(model: keras.Model) -> Counter[str]:
    """Returns how many nodes take each tensor of a model's graph, by the tensor's id as text."""
    uses: Counter[str] = model._tensor_usage_count
    return uses


def is_symbolic(value: Any) -> bool:
    """Says whether `value` is a tensor of a graph under construction."""
    return isinstance(value, KerasTensor)


def get_history(tensor: Any) -> Any:
    """Returns (layer, node_index, tensor_index) of a symbolic tensor, or None for another one."""
    return getattr(tensor, "_keras_history", None)


def get_mask(tensor: Any) -> Any:
    """Returns the mask that a tensor carries from an Embedding or Masking layer, or None."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: Any) -> None:
    """Lets a tensor carry a mask."""
    tensor._keras_mask = mask


def rename(layer: keras.layers.Layer, name: str) -> None:
    """Gives a layer another name."""
    layer._name = name


def set_output_names(model: keras.Model, names: Iterable[str]) -> None:
    """Sets the names of a model's outputs, by which `compile` takes losses and metrics."""
    # Keras would track a list that is set on a model, and look for it in every checkpoint.
    object.__setattr__(model, "output_names", list(names))


def set_own_trainable(model: Any, trainable: bool) -> None:
    """Sets a model's own flag alone; the public setter sets those of the layers inside too."""
    model._trainable = trainable


def expects_training(layer: keras.layers.Layer) -> bool:
    """Says whether a layer's call takes the argument `training`."""
    return bool(layer._expects_training_arg)


class AttentionParts(NamedTuple):
    """What a MultiHeadAttention layer consists of.

    Attributes:
        heads: The number of heads.
        key_dim: The size of each head's queries and keys.
        dropout: The rate of the dropout of attention weights.
        axes: The axes of a sequence that it attends over; None means all.
        query: The layer that projects the queries.
        key: The layer that projects the keys.
        value: The layer that projects the values.
        output: The layer that joins the heads.
    """

    heads: int
    key_dim: int
    dropout: float
    axes: tuple[int, ...] | None
    query: keras.layers.Layer
    key: keras.layers.Layer
    value: keras.layers.Layer
    output: keras.layers.Layer


def unpack_attention(layer: keras.layers.MultiHeadAttention) -> AttentionParts:
    """Returns the parts of a built MultiHeadAttention layer."""
    return AttentionParts(
        layer._num_heads,
        layer._key_dim,
        layer._dropout,
        layer._attention_axes,
        layer._query_dense,
        layer._key_dense,
        layer._value_dense,
        layer._output_dense,
    )


def get_function_arguments(loss: Any) -> dict[str, Any]:
    """Returns the arguments that a loss or metric of either Keras gives its function."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def get_schedule(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns an optimizer's learning rate schedule, or the variable where it has none."""
    return optimizer._learning_rate


def copy_weight_decay_exceptions(
    source: keras.optimizers.Optimizer, target: keras.optimizers.Optimizer
) -> None:
    """Leaves the same variables out of the weight decay of `target`."""
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_names"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
