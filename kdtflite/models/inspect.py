"""Input shapes, number of classes and kind of output of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.keras_internals import flatten_layers, get_history

__all__ = [
    "count_classes",
    "find_byte_scaling_layer",
    "find_output_kind",
    "find_output_step",
    "get_input_shapes",
]

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
    "sigmoid": "sigmoid",  # probabilities too, but independent ones
}
# Layers whose outputs lie between the values of their input.
_RANGE_KEEPING = frozenset(
    {"InputLayer", "Reshape", "Permute", "Resizing", "CenterCrop", "Cropping2D", "ZeroPadding2D"}
)
_MIN_SCALE_OF_UNIT_INPUTS = 0.1  # 1/255 and 1/127.5 scale bytes; 2 (to -1..1) values from 0 to 1
_MAX_VARIANCE_OF_UNIT_INPUTS = 0.25  # values from 0 to 1 cannot vary more


def find_output_kind(model: keras.Model) -> OutputKind:
    """Finds out from the last layers whether a classifier ends in logits, a softmax or a sigmoid.

    Looks through layers that only move values (Reshape, Flatten, Dropout, average pooling over
    all positions), through TFMOT's wrappers, and into a nested model at the end.

    Args:
        model: A tf_keras model with one output.

    Returns:
        "logits", "probabilities" or "sigmoid"; "unknown" if the model ends in a ReLU or a custom
        layer, or is subclassed.

    Raises:
        UnsupportedModelError: The model has several outputs.

    Example:
        >>> import tf_keras as keras
        >>> from kdtflite.models import find_output_kind
        >>> last = keras.layers.Dense(3, activation="softmax")
        >>> find_output_kind(keras.Sequential([keras.Input((4,)), last]))
        'probabilities'
    """
    layers = list(_walk_back(_get_single_output(model)))
    if not layers or _passes_through(_unwrap(layers[-1])):
        return "unknown"
    return _find_kind(_unwrap(layers[-1]))


def find_output_step(model: keras.Model) -> float:
    """Returns the distance of two codes of a model's output that is rounded on a fixed grid.

    A quantization-aware model rounds the probabilities of a softmax or sigmoid to 1/256. What it
    rounds to 0 stands for anything below half of that.

    Args:
        model: A tf_keras model.

    Returns:
        The step, or 0.0 for an output that is not rounded, or on a grid from data, and for a model
        without one output.
    """
    outputs: list[Any] = list(getattr(model, "outputs", None) or ())
    for layer in _walk_back(outputs[0]) if len(outputs) == 1 else ():
        quantizer: Any = getattr(layer, "quantizer", None)
        if hasattr(quantizer, "low") and hasattr(quantizer, "high"):
            return float(quantizer.high - quantizer.low) / (2**quantizer.bits - 1)
    return 0.0


def _walk_back(output: Any) -> Iterator[Any]:
    """Yields the layers behind an output, the last first, to the first that computes."""
    while (history := get_history(output)) is not None:
        layer = history.layer
        if isinstance(layer, keras.Model):
            if not getattr(layer, "outputs", None):
                yield layer
                return
            output = layer.outputs[history.tensor_index]
            continue
        yield layer
        previous = layer.inbound_nodes[history.node_index].keras_inputs
        if not _passes_through(_unwrap(layer)) or len(previous) != 1:
            return
        output = previous[0]


def count_classes(model: keras.Model) -> int:
    """Returns the last dimension of the output of a model.

    Args:
        model: A tf_keras model with one output, shape (batch, ..., classes).

    Raises:
        UnsupportedModelError: The model has several outputs, or has an unknown last dimension.
    """
    output = _get_single_output(model)
    shape = tuple(getattr(model, "output_shape", None) or ()) if output is not None else ()
    if len(shape) < 2 or not isinstance(shape[-1], int):
        raise UnsupportedModelError(
            f"Cannot tell how many classes the model {model.name!r} has. Expected an output of "
            f"shape (batch, ..., classes). Received: {shape or 'a model without a static shape'}. "
            "Build the model with keras.Input and end it in a Dense layer."
        )
    return int(shape[-1])


def get_input_shapes(model: keras.Model) -> dict[str, tuple[int | None, ...]]:
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


def find_byte_scaling_layer(model: keras.Model) -> str | None:
    """Returns the name of a model's first computing layer if it scales bytes (0..255), else None.

    Args:
        model: A tf_keras model. One with several inputs has no such layer.
    """
    if len(model.inputs) != 1:
        return None
    for layer in flatten_layers(model):
        kind = type(layer).__name__
        if hasattr(layer, "layers") or kind in _RANGE_KEEPING or kind.startswith("Random"):
            continue
        scales_bytes = False
        if kind == "Rescaling":
            scales_bytes = bool(np.max(np.abs(layer.scale)) < _MIN_SCALE_OF_UNIT_INPUTS)
        elif kind == "Normalization":
            weights = layer.get_weights()  # mean, variance, count; empty if they were given
            variance = np.max(weights[1] if weights else layer.input_variance)
            scales_bytes = bool(variance > _MAX_VARIANCE_OF_UNIT_INPUTS)
        return str(layer.name) if scales_bytes else None
    return None


def _get_single_output(model: keras.Model) -> Any:
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


def _unwrap(layer: Any) -> Any:
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
        return _get_activation_name(layer) == "linear"
    # Layers of fake quantization are named, not imported: models must not import quantization.
    return type(layer).__name__ in (
        "ActivityRegularization",
        "Identity",
        "FakeQuantize",
        "QuantizeLayer",
    )


def _find_kind(layer: Any) -> OutputKind:
    if isinstance(layer, keras.layers.Softmax):
        return "probabilities"
    if isinstance(layer, keras.layers.LSTM | keras.layers.GRU | keras.layers.SimpleRNN):
        return "unknown"
    return _KINDS.get(_get_activation_name(layer), "unknown")


def _get_activation_name(layer: Any) -> str:
    activation: Any = getattr(layer, "activation", None)
    # TFMOT replaces an activation by a QuantizeAwareActivation, which keeps it.
    while hasattr(activation, "activation"):
        activation = activation.activation
    if isinstance(activation, keras.layers.Softmax):
        return "softmax"
    return str(getattr(activation, "__name__", ""))
