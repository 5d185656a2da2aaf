"""A Keras model traced once, with the names of every layer's inputs and outputs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras_internals import get_input_structure
from kdtflite.quantization.layers import FakeQuantize

__all__ = ["Call", "Trace", "trace_tensors"]

# Only one replacement of `Layer.__call__` at a time.
_lock = threading.Lock()


@dataclass(eq=False)
class Call:
    """One call of a layer: a layer that is shared has several.

    Attributes:
        layer: The layer.
        path: Its name after the names of the models and layers that call it:
            "backbone/conv".
        number: Which call of this path it is, from 0.
        parent: The call that it was made in, or None.
        inputs: Names of its input tensors.
        outputs: Names of its output tensors, in order.
    """

    layer: keras.layers.Layer
    path: str
    number: int
    parent: Call | None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def is_model(self) -> bool:
        """Whether it is a call of a model, whose layers' calls have the details."""
        return isinstance(self.layer, keras.Model)

    @property
    def unit(self) -> Call | None:
        """The call that is shown: the outermost one that is not a call of a model."""
        around = self.parent.unit if self.parent is not None else None
        return around or (None if self.is_model else self)


@dataclass(eq=False)
class Trace:
    """All that one pass through a model computes.

    A tensor that is an unchanged copy (the output of Dropout outside training) has the name of the
    original. A layer's output, or an input of the model, is fake-quantized if a FakeQuantize layer
    follows it, which is not a unit of its own.

    Attributes:
        units: The calls to show, in the order in which they end.
        operations: By the name of each operation of the graph, the unit that it belongs to.
        inputs: By the name of each input of the model, its tensor.
        outputs: By the name of each output of the model, its tensor.
        rounded: By the name of each tensor that is fake-quantized, the one that it becomes.
        graph: The graph.
    """

    units: list[Call]
    operations: dict[str, Call]
    inputs: dict[str, str]
    outputs: dict[str, str]
    rounded: dict[str, str]
    graph: Any = field(repr=False)

    @functools.cached_property
    def computed(self) -> frozenset[str]:
        """Names of the operations that depend on the model's inputs."""
        found = {name.partition(":")[0] for name in self.inputs.values()}
        for operation in self.graph.get_operations():  # in the order in which they were made
            if any(tensor.op.name in found for tensor in operation.inputs):
                found.add(operation.name)
        return frozenset(found)

    def find_unit(self, tensor: str) -> Call | None:
        """Returns the unit that computes a tensor."""
        return self.operations.get(tensor.partition(":")[0])

    def shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """Returns the shape of a tensor, the batch first, or None where its rank is unknown."""
        shape = self.graph.get_tensor_by_name(tensor).shape
        return None if shape.rank is None else tuple(shape.as_list())


def trace_tensors(
    model: keras.Model, choose: Callable[[Trace], Iterable[str]]
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Traces a model at `training=False` and returns a function that computes some of its tensors.

    Args:
        model: A tf_keras model built on inputs.
        choose: Gets the trace and returns the names of the tensors to compute.

    Returns:
        A function of a batch by input name, arrays of shape (batch, ...), that gives the chosen
        tensors by name.
    """
    structure = get_input_structure(model)
    names = list(model.input_names)
    wanted: list[str] = []

    def run(*given: Any) -> list[Any]:
        graph = tf.compat.v1.get_default_graph()
        calls: list[Call] = []
        made: dict[str, Call] = {}
        rounded: dict[str, str] = {}
        with _record_calls(graph, calls, made, rounded):
            outputs = model(tf.nest.pack_sequence_as(structure, given), training=False)
        taken = [rounded.get(name, name) for name in map(_resolve_name, given)]
        given_out = [_resolve_name(tensor) for tensor in tf.nest.flatten(outputs)]
        wanted[:] = choose(
            Trace(
                units=[call for call in calls if call.unit is call],
                operations={name: unit for name, call in made.items() if (unit := call.unit)},
                inputs=dict(zip(names, taken, strict=True)),
                outputs=dict(zip(model.output_names, given_out, strict=True)),
                rounded=rounded,
                graph=graph,
            )
        )
        return [graph.get_tensor_by_name(name) for name in wanted]

    specs = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=_name_argument(number))
        for number, tensor in enumerate(model.inputs)
    ]
    function = tf.function(run, autograph=False).get_concrete_function(*specs)

    def compute(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = function(*(tf.constant(batch[name]) for name in names))
        return {name: value.numpy() for name, value in zip(wanted, values, strict=True)}

    return compute


def _name_argument(number: int) -> str:
    # Not the name of a layer, which an operation of the model might have.
    return f"kdtflite_input_{number}"


@contextmanager
def _record_calls(
    graph: Any, calls: list[Call], made: dict[str, Call], rounded: dict[str, str]
) -> Iterator[None]:
    """Records every call of a layer, the operations it makes, and what is fake-quantized."""
    open_calls: list[Call] = []
    numbers: dict[str, int] = {}

    def record(original: Any, layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        parent = open_calls[-1] if open_calls else None
        # The model's own name is not part of the paths: it may differ in the file.
        path = f"{parent.path}/{layer.name}".lstrip("/") if parent else ""
        call = Call(layer, path, numbers.get(path, 0), parent)
        numbers[path] = call.number + 1
        before = len(graph.get_operations())
        open_calls.append(call)
        try:
            outputs = original(layer, *args, **kwargs)
        finally:
            open_calls.pop()
        if isinstance(layer, FakeQuantize):
            # It belongs to the layer whose output it rounds.
            (given,), (kept,) = _iterate_tensors(graph, args), _iterate_tensors(graph, outputs)
            rounded[given] = kept
            call = made.get(given.partition(":")[0], call)
            _replace_output(call, given, kept)
        for operation in graph.get_operations()[before:]:
            made.setdefault(operation.name, call)
        if isinstance(layer, FakeQuantize):
            return outputs
        call.inputs = tuple(_iterate_tensors(graph, (args, kwargs)))
        call.outputs = tuple(_iterate_tensors(graph, outputs))
        if parent is not None:
            calls.append(call)
        return outputs

    with _intercept_calls(record):
        yield


@contextmanager
def _intercept_calls(around: Callable[..., Any]) -> Iterator[None]:
    """Sends every call of a layer in this thread through `around(original, layer, ...)`.

    Keras has no hook for this: its call context sees what a layer takes, not what it gives. Layers
    that other threads call meanwhile work as ever.
    """
    original = keras.layers.Layer.__call__
    thread = threading.get_ident()

    @functools.wraps(original)
    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(layer, *args, **kwargs)
        return around(original, layer, *args, **kwargs)

    with _lock:
        keras.layers.Layer.__call__ = call
        try:
            yield
        finally:
            keras.layers.Layer.__call__ = original


def _replace_output(call: Call | None, old: str, new: str) -> None:
    while call is not None:
        call.outputs = tuple(new if name == old else name for name in call.outputs)
        call = call.parent


def _iterate_tensors(graph: Any, structure: Any) -> Iterator[str]:
    """Yields the tensors of `graph` in a structure, without those of loop bodies."""
    for value in tf.nest.flatten(structure, expand_composites=True):
        if tf.is_tensor(value) and getattr(value, "graph", None) is graph:
            yield _resolve_name(value)


def _resolve_name(tensor: Any) -> str:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return str(tensor.name)
