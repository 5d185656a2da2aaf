"""What `quantize_aware` refuses before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.keras_internals import flatten_layers
from kdtflite.quantization.graph import list_calls
from kdtflite.quantization.layers import FakeQuantize, FakeQuantized

__all__ = ["check_suitability", "list_leaves", "refuse_state", "refuse_tied_weights"]


def check_suitability(model: keras.Model) -> None:
    """Refuses a float model that cannot be trained quantization-aware as it is.

    Args:
        model: A Functional or Sequential tf_keras model.

    Raises:
        UnsupportedModelError: It is quantized already, or has a Lambda, a stateful recurrent layer
            or a weight that two layers share.
    """
    for layer in flatten_layers(model):
        if isinstance(layer, FakeQuantize | FakeQuantized) or hasattr(layer, "quantize_config"):
            raise UnsupportedModelError(
                f"The model {model.name!r} is quantization-aware already. Pass the float model."
            )
        if type(layer) is keras.layers.Lambda:
            raise UnsupportedModelError(
                f"The layer {layer.name!r} is a Lambda, whose code cannot be copied safely. "
                "Make it a subclass of keras.layers.Layer, or use TensorFlow operations directly."
            )
        refuse_state(layer)
    refuse_tied_weights(model)


def refuse_state(layer: Any) -> None:
    """Refuses a recurrent layer that keeps its state from one call to the next.

    Args:
        layer: Any layer.

    Raises:
        UnsupportedModelError: It is stateful.
    """
    if isinstance(layer, keras.layers.RNN) and layer.stateful:
        raise UnsupportedModelError(
            f"The layer {layer.name!r} ({type(layer).__name__}) is stateful. A file keeps nothing "
            "from one call to the next. Make its state an input and an output of the model: "
            "return_state=True, and call it with initial_state=..."
        )


def refuse_tied_weights(model: Any) -> None:
    """Refuses a model in which two layers have one weight, which a copy would train apart.

    One layer that is called twice is fine.

    Args:
        model: A model of layers, tf_keras or Keras 3.

    Raises:
        UnsupportedModelError: Two layers, or a layer and an operation, share a weight.
    """
    owners: dict[int, tuple[str, Any]] = {}
    for path, layer in list_leaves(model):
        for weight in layer.weights:
            other, owner = owners.setdefault(id(weight), (path, layer))
            if owner is not layer:
                raise _make_tied_error(weight, f"layers {other!r} and {path!r}")
    if not isinstance(model, keras.Model):
        return
    graphs = [model, *(each for each in flatten_layers(model) if hasattr(each, "layers"))]
    for call in (call for graph in graphs for call in list_calls(graph)):
        for value in tf.nest.flatten((call.args, call.kwargs)):
            if isinstance(value, tf.Variable) and id(value) in owners:
                path = owners[id(value)][0]
                raise _make_tied_error(
                    value, f"layer {path!r} and the operation {call.layer.name!r}"
                )


def _make_tied_error(weight: Any, pair: str) -> UnsupportedModelError:
    name = str(getattr(weight, "path", weight.name)).split(":")[0].rpartition("/")[2]
    return UnsupportedModelError(
        f"The {pair} share the weight {name!r}. In the quantization-aware copy the two would train "
        "apart. Expected weights that belong to one layer: call one layer twice, or give each "
        "layer its own weight."
    )


def list_leaves(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the layers of a model and of the models inside it, by path, without inputs."""
    for layer in model.layers:
        if type(layer).__name__ == "InputLayer":
            continue
        yield from _list_leaves_of(layer, path + layer.name)


def _list_leaves_of(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    if type(layer).__name__ == "TimeDistributed":
        yield from _list_leaves_of(layer.layer, path)
    elif hasattr(layer, "layers"):
        yield from list_leaves(layer, f"{path}/")
    else:
        yield path, layer
