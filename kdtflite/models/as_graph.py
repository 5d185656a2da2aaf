"""Whatever a user hands over as a model, as a float32 graph of layers that can be rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdtflite.arguments import check_arguments
from kdtflite.errors import UnsupportedModelError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.progress import say

if TYPE_CHECKING:
    import tf_keras

__all__ = ["as_graph"]

_OTHER_FLOATS = frozenset({"bfloat16", "float16", "float64"})


@check_arguments
def as_graph(model: Any, *, float32: bool = True) -> tf_keras.Model:
    """Returns `model` as a Sequential or Functional tf_keras model, at every depth, in float32.

    A subclassed model is traced: its `call` runs on symbolic inputs of the shapes that the model
    was built with, and the layers it calls become the graph. Layers and weights are the same
    objects, so training one model trains the other. Subclassed layers and models inside it that
    consist of layers alone are traced too, and become models of the same name; a custom layer
    that cannot be traced stays a layer. The outputs of both models are compared on random input,
    and the largest difference is printed.

    A model that computes in half or double precision is then copied to float32, since fake
    quantization and the converter's integer kernels know nothing else.

    Args:
        model: A model as `as_tf_keras` takes it. Build a subclassed tf_keras model by calling it
            on data; `model.build(shape)` assumes float32 inputs.
        float32: Copy a model of another precision to float32. Without, it is only traced.

    Returns:
        The model itself where nothing had to be traced or converted.

    Raises:
        UnsupportedModelError: The model is not built; its `call` depends on values, on training,
            or on weights outside its layers; or the traced model computes something else. The
            message says what to change.
        ModelFileError: The file cannot be loaded.

    Example:
        >>> import kdtflite
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> class Residual(keras.Model):
        ...     def __init__(self):
        ...         super().__init__(name="residual")
        ...         self.dense = keras.layers.Dense(4, name="dense")
        ...     def call(self, x):
        ...         return x + self.dense(x)
        >>> model = Residual()
        >>> _ = model(np.ones((1, 4), "float32"))
        >>> graph = kdtflite.models.as_graph(model)
        >>> [layer.name for layer in graph.layers if layer.weights]
        ['dense']
    """
    from kdtflite.models.tracing import needs_tracing

    model = as_tf_keras(model)
    if needs_tracing(model):
        model = _trace(model)
    return _copy_in_float32(model) if float32 else model


def _trace(model: tf_keras.Model) -> tf_keras.Model:
    from kdtflite.models.graphs import count_layers
    from kdtflite.models.parity import compare, draw_inputs, report_once
    from kdtflite.models.tracing import trace

    inputs = _make_inputs(model)
    traced = trace(model, inputs)
    parity = compare(
        f"The call() of the model {model.name!r} was traced to a Functional model",
        model,
        traced,
        draw_inputs(traced, inputs),
        "Build the model with the functional API: keras.Model(inputs, outputs).",
    )
    report_once(
        model,
        f"Model {model.name!r} ({type(model).__name__}) traced to a Functional model: "
        f"{count_layers(traced)} layers, {parity}.",
    )
    return traced


def _make_inputs(model: tf_keras.Model) -> Any:
    """Makes inputs like those that the model was built with, in the structure of its call()."""
    import tensorflow as tf
    import tf_keras as keras

    from kdtflite.models.graphs import map_structure
    from kdtflite.models.keras_internals import get_build_shapes, get_input_structure

    def make_input(spec: Any) -> Any:
        shape = tuple(spec.shape)
        # A layer cannot have a name of TensorFlow's own, such as "args_0/x:0".
        name = spec.name if str(spec.name).isidentifier() else None
        return keras.Input(shape[1:], batch_size=shape[0], dtype=spec.dtype, name=name)

    if getattr(model, "inputs", None):
        return map_structure(make_input, get_input_structure(model))
    called = model.save_spec()
    if called is None:
        return map_structure(make_input, _make_specs(get_build_shapes(model), tf))
    args, kwargs = called
    tensors = [value for value in kwargs.values() if isinstance(value, tf.TensorSpec)]
    if len(args) != 1 or tensors:
        raise UnsupportedModelError(
            f"The call() of the model {model.name!r} takes {len(args) + len(tensors)} inputs side "
            "by side. Let it take one: a tensor, or a list or dict of tensors."
        )
    return map_structure(make_input, args[0])


def _make_specs(shapes: Any, tf: Any, name: str | None = None) -> Any:
    """Makes float32 specifications of the shapes that `build` was called with."""
    if isinstance(shapes, dict):
        return {key: _make_specs(value, tf, str(key)) for key, value in shapes.items()}
    if isinstance(shapes, list | tuple) and not all(
        size is None or isinstance(size, int) for size in shapes
    ):
        return [_make_specs(value, tf) for value in shapes]
    return tf.TensorSpec([None, *tuple(shapes)[1:]], "float32", name=name)


def _copy_in_float32(model: tf_keras.Model) -> tf_keras.Model:
    """Returns `model` if it computes in float32, else a copy that does, with the same weights."""
    from kdtflite.models.keras_internals import flatten_layers
    from kdtflite.models.policy import use_custom_layers, use_float32

    found = _OTHER_FLOATS & {layer.compute_dtype for layer in flatten_layers(model)}
    if not found:
        return model
    named = ", ".join(sorted(found))
    say(f"The model {model.name!r} computes in {named}; it is rebuilt in float32.")
    with use_float32(), use_custom_layers(model):
        copy = _clone(model)
    copy.set_weights(model.get_weights())
    return copy


def _clone(model: tf_keras.Model) -> tf_keras.Model:
    import tf_keras as keras

    from kdtflite.models.graphs import map_structure
    from kdtflite.models.keras_internals import get_input_structure

    def clone(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if isinstance(layer, keras.Model):
            return _clone(layer)
        config = layer.get_config()
        if layer.compute_dtype in _OTHER_FLOATS:
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    def make_input(tensor: Any) -> Any:
        dtype = "float32" if tensor.dtype.name in _OTHER_FLOATS else tensor.dtype
        shape = tuple(tensor.shape)
        return keras.Input(shape[1:], batch_size=shape[0], dtype=dtype, name=tensor.name)

    inputs = map_structure(make_input, get_input_structure(model))
    return keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
