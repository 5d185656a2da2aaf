"""Subclassed models and layers, traced to Functional models.

This works for both generations of Keras. `call` runs on symbolic inputs, as Keras itself runs it
for a layer of a Functional model, but the layers it calls become the graph. Layers and their
weights stay the same objects.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.graphs import (
    accepts_training,
    describe,
    describe_weight,
    expand_ellipsis,
    flatten_structure,
    get_keras,
    is_graph,
    is_opened,
    list_own_weights,
    list_weights,
    map_structure,
    walk_nodes,
)
from kdtflite.models.keras_internals import (
    KerasTensor,
    flatten_layers,
    get_mask,
    is_symbolic,
    restore_nodes,
    set_own_trainable,
)

__all__ = ["needs_tracing", "trace"]


def needs_tracing(model: Any) -> bool:
    """Says whether a model is subclassed or holds, however deep, a layer that `trace` opens."""
    if not is_graph(model):
        return True
    return any(is_opened(layer) for layer in flatten_layers(model))


def trace(model: Any, inputs: Any) -> Any:
    """Returns the Functional model that computes what `model` does, with the same layers.

    The user's own layers that consist of layers alone become models inside the model. A tf_keras
    layer whose `call` cannot be followed stays as it is; such a Keras 3 layer is refused, since
    nothing could rebuild it.

    Args:
        model: A built model of tf_keras or Keras 3.
        inputs: Symbolic inputs of the same Keras, in the structure that `call` takes.

    Raises:
        UnsupportedModelError: `call` cannot be followed, takes another path in training, or uses
            weights that belong to no layer. The message says what to change.
    """
    if not is_graph(model):
        _refuse_several_inputs(model)
        _refuse_own_weights(model)
    layers = [model, *flatten_layers(model)]
    if any(accepts_training(layer) for layer in layers if not is_graph(layer)):
        with restore_nodes(layers):
            training = _Tracer(model, inputs, training=True).list_calls()
        with restore_nodes(layers):
            inference = _Tracer(model, inputs, training=None).list_calls()
        if training != inference:
            more, fewer = (
                sorted({name for name, _ in one if (name, _) not in other})
                for one, other in ((training, inference), (inference, training))
            )
            only = "; ".join(
                f"only in {mode}: {', '.join(names)}"
                for mode, names in (("training", more), ("inference", fewer))
                if names
            )
            raise UnsupportedModelError(
                f"The call() of {describe(model)} takes another path in training than in "
                f"inference{f' ({only})' if only else ''}, and a Functional model has one. "
                "Call the layers always: Dropout, BatchNormalization, GaussianNoise and the Random "
                "layers know by themselves when to do nothing."
            )
    return _Tracer(model, inputs, training=None).build()


class _Tracer:
    """One trace of a model; every call() of the user's own gets `training`."""

    def __init__(self, model: Any, inputs: Any, training: bool | None) -> None:
        self._source = model
        self._inputs = inputs
        self._training = training
        self._keras = get_keras(model)
        self._opened: dict[tuple[int, str], Any] = {}
        self._used: set[str] = set()

    def build(self) -> Any:
        """Builds the Functional model."""
        kwargs = {}
        if accepts_training(self._source) and not is_graph(self._source):
            kwargs["training"] = self._training
        with self._patch_classes():
            try:
                outputs = self._source.call(self._inputs, **kwargs)
                model = self._keras.Model(self._inputs, outputs, name=self._source.name)
            except UnsupportedModelError:
                raise
            # The user's code may raise anything.
            except Exception as error:
                raise _explain(self._source, error) from error
        _refuse_other_weights(self._source, model)
        return model

    def list_calls(self) -> list[tuple[str, int]]:
        """Returns the calls in order, those inside opened layers too, each as (name, identity)."""
        own = {id(layer): layer for layer in [self._source, *flatten_layers(self._source)]}

        def walk(model: Any) -> Iterator[tuple[str, int]]:
            for layer, tensors in walk_nodes(model):
                if any(layer is item for item in self._opened.values()):
                    yield from walk(layer)
                elif id(layer) in own:
                    yield layer.name, id(layer)
                else:
                    yield type(layer).__name__, len(tensors)

        return list(walk(self.build()))

    @contextlib.contextmanager
    def _patch_classes(self) -> Iterator[None]:
        """Redirects calls of the layers to open to this tracer while the block runs."""
        with contextlib.ExitStack() as stack:
            for kind in {type(layer) for layer in flatten_layers(self._source) if is_opened(layer)}:
                stack.enter_context(_replace(kind, "__call__", self._intercept(kind.__call__)))
            if self._keras.__name__ != "keras":
                stack.enter_context(_make_calls_writable())
            yield

    def _intercept(self, original: Any) -> Any:
        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            tensors = flatten_structure((args, kwargs))
            if not is_opened(layer) or not any(self._is_symbolic(item) for item in tensors):
                return original(layer, *args, **kwargs)
            return self._call_opened(layer, original, args, kwargs)

        return call

    def _call_opened(self, layer: Any, original: Any, args: Any, kwargs: Any) -> Any:
        bound = inspect.signature(layer.call).bind(*args, **kwargs)
        training = bound.arguments.pop("training", None)
        tensors = [item for item in flatten_structure(bound.arguments) if self._is_symbolic(item)]
        settings = map_structure(
            lambda item: "a tensor" if self._is_symbolic(item) else item, dict(bound.arguments)
        )
        key = (id(layer), repr(settings))
        if key not in self._opened:
            try:
                self._opened[key] = self._open(layer, bound, tensors)
            except Exception as error:
                if self._keras.__name__ != "keras":
                    return original(layer, *args, **kwargs)
                if isinstance(error, UnsupportedModelError):
                    raise
                raise _explain(layer, error) from error
        model = self._opened[key]
        mode = {} if training is None else {"training": training}
        return model(tensors[0] if len(tensors) == 1 else tensors, **mode)

    def _open(self, layer: Any, bound: inspect.BoundArguments, tensors: list[Any]) -> Any:
        masked = any(get_mask(tensor) is not None for tensor in tensors)
        parameters = bound.signature.parameters
        if (
            not is_graph(layer)
            and masked
            and "mask" in parameters
            and "mask" not in bound.arguments
        ):
            raise ValueError("its call() takes the mask that an Embedding or Masking layer made.")
        inputs = [self._make_input(tensor) for tensor in tensors]
        waiting = iter(inputs)
        arguments = map_structure(
            lambda item: next(waiting) if self._is_symbolic(item) else item, dict(bound.arguments)
        )
        bound.arguments.update(arguments)
        if "training" in parameters and not is_graph(layer):
            bound.arguments["training"] = self._training
        outputs = layer.call(*bound.args, **bound.kwargs)
        name = layer.name
        while name in self._used:
            name += "_again"  # the same layer, called with other settings
        self._used.add(name)
        model = self._keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs, name=name)
        _refuse_other_weights(layer, model)
        set_own_trainable(model, layer.trainable)
        return model

    def _make_input(self, tensor: Any) -> Any:
        shape, dtype = tuple(tensor.shape), tensor.dtype
        return self._keras.Input(shape[1:], batch_size=shape[0], dtype=dtype)

    def _is_symbolic(self, value: Any) -> bool:
        if self._keras.__name__ == "keras":
            return isinstance(value, self._keras.KerasTensor)
        return is_symbolic(value)


def _refuse_several_inputs(model: Any) -> None:
    needed = [
        name
        for name, parameter in inspect.signature(model.call).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in ("mask", "training")
    ]
    if len(needed) > 1:
        raise UnsupportedModelError(
            f"The call() of {describe(model)} takes {len(needed)} inputs side by side "
            f"({', '.join(needed)}). Let it take one: a tensor, or a list or dict of tensors."
        )


def _refuse_own_weights(model: Any) -> None:
    own = [describe_weight(weight) for weight in list_own_weights(model)]
    if own:
        raise UnsupportedModelError(
            f"Expected weights in layers alone. Received: {describe(model)}, which holds "
            f"{', '.join(own[:6])} itself, as a Functional model cannot. Hold them in a layer: "
            "Dense, EinsumDense, Embedding, or a subclass of keras.layers.Layer."
        )


def _refuse_other_weights(layer: Any, traced: Any) -> None:
    weights, kept = list_weights(layer), traced.weights
    for ours, theirs, advice in (
        (
            weights,
            kept,
            "calls no layer on its inputs that holds the weights {}, which would stay behind: a "
            "layer called on a constant (positions from arange), weights used without their "
            "layer, or a layer that call() leaves out. Call such layers on what comes from the "
            "inputs, and remove those that call() does not use.",
        ),
        (kept, weights, "makes the weights {}. Make their layers in __init__(), once."),
    ):
        known = {id(weight) for weight in theirs}
        names = [describe_weight(weight) for weight in ours if id(weight) not in known]
        if names:
            shown = f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
            raise UnsupportedModelError(f"The call() of {describe(layer)} {advice.format(shown)}")


@contextlib.contextmanager
def _replace(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives a class another attribute while the block runs."""
    original, is_own = getattr(owner, name), name in vars(owner)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def _make_calls_writable() -> Iterator[None]:
    """Mends two calls that tf_keras puts into a graph and then can neither clone nor save.

    The Ellipsis in a slice is replaced by whole axes, and tf.einsum becomes a layer.
    """
    import tensorflow as tf

    from kdtflite.models import layers

    plain_slice, plain_einsum = KerasTensor.__getitem__, tf.einsum

    def get_item(tensor: Any, key: Any) -> Any:
        return plain_slice(tensor, expand_ellipsis(key, len(tensor.shape)))

    def einsum(equation: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(is_symbolic(item) for item in inputs):
            return layers.einsum(equation, *inputs)
        return plain_einsum(equation, *inputs, **kwargs)

    with _replace(KerasTensor, "__getitem__", get_item), _replace(tf, "einsum", einsum):
        yield


def _explain(layer: Any, error: Exception) -> UnsupportedModelError:
    reason = " ".join(str(error).split())
    return UnsupportedModelError(
        f"The call() of {describe(layer)} cannot be followed with symbolic inputs: "
        f"{type(error).__name__}: {reason[:300]} Expected a call() that only calls layers and "
        "operations on its inputs: no Python branch, loop or NumPy function on their values, no "
        "tf.function around it, no variable made in it, no name given to two layers. Otherwise "
        "build the model with the functional API: keras.Model(inputs, outputs)."
    )
