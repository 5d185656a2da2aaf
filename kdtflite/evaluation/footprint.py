"""Parameters and multiply-accumulates of a Keras model or of a file."""

from __future__ import annotations

from math import prod
from typing import Any

from kdtflite.evaluation.models import as_model
from kdtflite.evaluation.multiply_accumulates import count_file_macs, count_graph_macs
from kdtflite.lite.model import LiteModel
from kdtflite.lite.operators import BIAS_POSITION

__all__ = ["macs", "parameters"]

# What wrappers for training add to a layer's variables; no file holds them.
_WRAPPERS = ("tensorflow_model_optimization", "kdtflite.quantization")
_WRAPPER_VARIABLES = ("_min", "_max", "_batches", "_step", "_zero")
_WRAPPER_NAMES = frozenset(
    {"optimizer_step", "pruning_step", "mask", "threshold", "pulling_indices"}
)
_INTEGERS = frozenset({"bool", "int32", "int64", "uint32", "uint64", "string"})


def parameters(model: Any) -> int:
    """Returns the number of parameters.

    Args:
        model: A Keras model: trainable and non-trainable weights, shared ones once, without the
            ranges, masks and step counters of training wrappers. A LiteModel or the path of
            a `.tflite`: elements of the stored weights and biases, without shapes, axes and
            paddings. A file has fewer than its Keras model where batch normalization was folded,
            a bias is all zero (left out) or two constants are equal (stored once).

    Raises:
        UnsupportedModelError: Another kind of model.
        ModelFileError: The file cannot be read.
    """
    model = as_model(model)
    if isinstance(model, LiteModel):
        return _count_stored_elements(model)
    extra = {id(variable) for variable in _find_wrapper_variables(model)}
    # Model.weights holds each shared variable once.
    return sum(prod(v.shape) for v in model.weights if id(v) not in extra)


def macs(model: Any) -> int:
    """Returns the multiply-accumulates for one sample.

    Counted are convolutions of every kind, dense layers and matrix products, shared layers once
    a call, padding as if it were data. Additions, activations and pooling are not.

    Args:
        model: A Keras model, whose graph for one sample is walked, so that nested, wrapped and
            custom layers count what they do. Or a LiteModel or the path of a `.tflite`, whose
            operators are walked.

    Raises:
        UnsupportedModelError: Another kind of model, a free dimension besides the batch, or a
            loop, whose rounds cannot be counted before it runs.
        ModelFileError: The file cannot be read.
    """
    model = as_model(model)
    if isinstance(model, LiteModel):
        return count_file_macs(model)
    return count_graph_macs(model)


def _find_wrapper_variables(model: Any) -> list[Any]:
    found = []
    # Wrappers are recognized by the module of their class: importing TFMOT would take a second.
    from kdtflite.models.keras_internals import flatten_layers

    for layer in flatten_layers(model):
        if not type(layer).__module__.startswith(_WRAPPERS):
            continue
        for variable in layer.weights:
            name = variable.name.split(":")[0].rsplit("/", 1)[-1]
            if name in _WRAPPER_NAMES or name.endswith(_WRAPPER_VARIABLES):
                found.append(variable)
    return found


def _count_stored_elements(model: LiteModel) -> int:
    biases: set[tuple[int, int]] = set()
    used: set[tuple[int, int]] = set()
    for operator in model.operators:
        used.update((operator.subgraph, index) for index in operator.inputs)
        position = BIAS_POSITION.get(operator.name)
        if position is not None and position < len(operator.inputs):
            biases.add((operator.subgraph, operator.inputs[position]))
    return sum(
        prod(tensor.shape)
        for tensor in model.tensors
        # The scales of int4 weights in blocks are constants that no operator reads.
        if tensor.is_constant
        and (tensor.subgraph, tensor.index) in used
        and (tensor.dtype not in _INTEGERS or (tensor.subgraph, tensor.index) in biases)
    )
