"""What a model takes and gives: input shapes, classes, logits or probabilities."""

from __future__ import annotations

from typing import Any, Literal

import tf_keras as keras

from kdtflite.errors import UnsupportedModelError

__all__ = ["input_shapes", "number_of_classes", "output_kind"]

OutputKind = Literal["logits", "probabilities", "sigmoid", "unknown"]

# Layers through which logits stay logits and probabilities stay probabilities.
_TRANSPARENT = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Permute,
    keras.layers.Reshape,
)
_KINDS: dict[str, OutputKind] = {
    "linear": "logits",
    "log_softmax": "logits",  # softmax of log-probabilities gives the probabilities again
    "softmax": "probabilities",
    "softmax_v2": "probabilities",
    "sigmoid": "sigmoid",  # probabilities too, but each for itself
}


def output_kind(model: keras.Model) -> OutputKind:
    """Says whether a classifier ends in logits, a softmax or a sigmoid, from its last layers.

    Looks through layers that only move values (Reshape, Flatten, Dropout, average pooling over
    all positions), through TFMOT's wrappers, and into a nested model at the end.

    Args:
        model: A tf_keras model with one output.

    Returns:
        "unknown" where the layers do not tell: a ReLU or a custom layer at the end, or a
        subclassed model.

    Raises:
        UnsupportedModelError: The model has several outputs.
    """
    output = _single_output(model)
    if output is None:
        return "unknown"
    while True:
        history = getattr(output, "_keras_history", None)
        if history is None:
            return "unknown"
        layer = history.layer
        if isinstance(layer, keras.Model):
            if not getattr(layer, "outputs", None):
                return "unknown"
            output = layer.outputs[history.tensor_index]
            continue
        inner = _unwrapped(layer)
        if not _passes_through(inner):
            return _kind_of_layer(inner)
        previous = layer.inbound_nodes[history.node_index].keras_inputs
        if len(previous) != 1:
            return "unknown"
        output = previous[0]


def number_of_classes(model: keras.Model) -> int:
    """Returns the last dimension of the model's output.

    Args:
        model: A tf_keras model with one output, shape (batch, ..., classes).

    Raises:
        UnsupportedModelError: The model has several outputs, or leaves that dimension open.
    """
    output = _single_output(model)
    shape = tuple(getattr(model, "output_shape", None) or ()) if output is not None else ()
    if len(shape) < 2 or not isinstance(shape[-1], int):
        raise UnsupportedModelError(
            f"Cannot tell how many classes the model {model.name!r} has. Expected an output of "
            f"shape (batch, ..., classes). Received: {shape or 'a model without a static shape'}. "
            "Build the model with keras.Input and end it in a Dense layer."
        )
    return int(shape[-1])


def input_shapes(model: keras.Model) -> dict[str, tuple[int | None, ...]]:
    """Returns the shape of each input, batch dimension first, by input name.

    Args:
        model: A tf_keras model built on keras.Input.

    Raises:
        UnsupportedModelError: The model is subclassed or unbuilt and has no symbolic inputs.
    """
    if not getattr(model, "inputs", None):
        raise UnsupportedModelError(
            f"The model {model.name!r} ({type(model).__name__}) has no symbolic inputs. Build it "
            "with the functional API, keras.Model(inputs, outputs), or start it with keras.Input."
        )
    return {
        name: tuple(tensor.shape)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    }


def _single_output(model: keras.Model) -> Any:
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return None
    if len(outputs) > 1:
        raise UnsupportedModelError(
            f"Expected a model with one output. Received: model {model.name!r} with "
            f"{len(outputs)} outputs, {', '.join(model.output_names)}. Make a model of the one "
            "that classifies: keras.Model(model.inputs, model.outputs[i])."
        )
    return outputs[0]


def _unwrapped(layer: Any) -> Any:
    """Returns the layer inside TFMOT's wrappers and TimeDistributed."""
    while isinstance(layer, keras.layers.Wrapper) and not isinstance(
        layer, keras.layers.Bidirectional
    ):
        layer = layer.layer
    return layer


def _passes_through(layer: Any) -> bool:
    if isinstance(layer, _TRANSPARENT):
        return True
    if type(layer) is keras.layers.Activation:
        return _activation_name(layer) == "linear"
    # Fake quantization alone; named, not imported: it stands to the right of this package.
    return type(layer).__name__ in (
        "ActivityRegularization",
        "Identity",
        "FakeQuantize",
        "QuantizeLayer",
    )


def _kind_of_layer(layer: Any) -> OutputKind:
    if isinstance(layer, keras.layers.Softmax):
        return "probabilities"
    if isinstance(layer, keras.layers.LSTM | keras.layers.GRU | keras.layers.SimpleRNN):
        return "unknown"
    return _KINDS.get(_activation_name(layer), "unknown")


def _activation_name(layer: Any) -> str:
    activation: Any = getattr(layer, "activation", None)
    # TFMOT replaces an activation by a QuantizeAwareActivation, which keeps it.
    while hasattr(activation, "activation"):
        activation = activation.activation
    if isinstance(activation, keras.layers.Softmax):
        return "softmax"
    return str(getattr(activation, "__name__", ""))
