"""Any Keras model as a Functional or Sequential tf_keras model, whose graph can be rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.from_keras3 import is_keras3_model

if TYPE_CHECKING:
    import tf_keras

__all__ = ["as_functional"]

_ADVICE = "Build the model with the functional API: keras.Model(inputs, outputs)."


def as_functional(model: Any) -> tf_keras.Model:
    """Returns a model whose graph can be seen: Sequential or Functional, at every depth.

    A subclassed model is traced: its `call` runs on symbolic inputs of the shapes that the model
    was built with, and what it calls becomes the graph. Layers and weights are the same objects,
    so training one model trains the other. Subclassed layers and models inside it that are made
    of layers alone are traced too, and become models of the same name; a custom layer that cannot
    be traced stays a layer. The outputs of both models are compared on random input, and the
    largest difference is printed.

    Args:
        model: A built model of tf_keras or Keras 3. A subclassed tf_keras model is built by
            calling it on data; `model.build(shape)` takes its inputs to be float32.

    Returns:
        `model` itself where nothing had to be traced or converted.

    Raises:
        UnsupportedModelError: The model is not built; its `call` depends on values, on training,
            or on weights outside its layers; or what was traced computes something else. The
            message says what to change.

    Example:
        >>> model = Residual()  # a subclass of keras.Model
        >>> _ = model(images[:1])
        >>> student = kdtflite.quantize_aware(kdtflite.models.as_functional(model), images)
    """
    if is_keras3_model(model):
        return as_tf_keras(model)
    model = as_tf_keras(model)
    from kdtflite.models.graphs import number_of_layers
    from kdtflite.models.parity import compare, random_inputs, tell_once
    from kdtflite.models.tracing import must_be_traced, trace

    if not must_be_traced(model):
        return model
    inputs = _symbolic_inputs(model)
    traced = trace(model, inputs)
    parity = compare(
        f"The call() of the model {model.name!r} was traced to a Functional model",
        model,
        traced,
        random_inputs(traced, inputs),
        _ADVICE,
    )
    tell_once(
        model,
        f"Model {model.name!r} ({type(model).__name__}) traced to a Functional model: "
        f"{number_of_layers(traced)} layers, {parity}.",
    )
    return traced


def _symbolic_inputs(model: tf_keras.Model) -> Any:
    """Makes inputs like those that the model was built with, in the structure of its call()."""
    import tensorflow as tf
    import tf_keras as keras

    from kdtflite.models.graphs import map_structure

    def symbolic(spec: Any) -> Any:
        shape = tuple(spec.shape)
        # A name of TensorFlow's own, as "args_0/x:0", is none that a layer can have.
        name = spec.name if str(spec.name).isidentifier() else None
        return keras.Input(shape[1:], batch_size=shape[0], dtype=spec.dtype, name=name)

    if getattr(model, "inputs", None):
        return map_structure(symbolic, getattr(model, "_nested_inputs", model.inputs[0]))
    called = model.save_spec()
    if called is None:
        shapes = model._build_input_shape
        return map_structure(symbolic, _specs(shapes, tf))
    args, kwargs = called
    tensors = [value for value in kwargs.values() if isinstance(value, tf.TensorSpec)]
    if len(args) != 1 or tensors:
        raise UnsupportedModelError(
            f"The call() of the model {model.name!r} takes {len(args) + len(tensors)} inputs side "
            "by side. Let it take one: a tensor, or a list or dict of tensors."
        )
    return map_structure(symbolic, args[0])


def _specs(shapes: Any, tf: Any, name: str | None = None) -> Any:
    """Makes float32 specifications of the shapes that `build` was called with."""
    if isinstance(shapes, dict):
        return {key: _specs(value, tf, str(key)) for key, value in shapes.items()}
    if isinstance(shapes, list | tuple) and not all(
        size is None or isinstance(size, int) for size in shapes
    ):
        return [_specs(value, tf) for value in shapes]
    return tf.TensorSpec([None, *tuple(shapes)[1:]], "float32", name=name)
