"""Rebuilds Keras 3 models in tf_keras and checks that they compute the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtflite import progress
from kdtflite.errors import UnsupportedModelError

if TYPE_CHECKING:
    import tf_keras

__all__ = ["Keras3Conversion", "convert_keras3", "from_keras3", "is_from_keras3"]

_FLOAT_TYPES = ("float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")
# Of the largest output, if the given model computes in half precision.
_HALF_TOLERANCE = 2e-2
_ADVICE = "Rebuild the model with tf_keras (`import tf_keras as keras`) and load its weights there."


@dataclass(frozen=True)
class Keras3Conversion:
    """A Keras 3 model rebuilt in tf_keras.

    Attributes:
        model: The tf_keras model.
        max_abs_difference: The largest difference between an output of the two models, measured
            on random inputs at training=False.
    """

    model: tf_keras.Model
    max_abs_difference: float


def is_from_keras3(obj: Any) -> bool:
    """Says whether `obj` comes from Keras 3, without importing Keras 3.

    True for a model, layer, optimizer or any other object whose class, or a base of it, is defined
    in the package `keras`. Keras 2 is not in that package, but in `tf_keras`.
    """
    if "keras" not in sys.modules:
        return False
    return any(base.__module__.split(".")[0] == "keras" for base in type(obj).__mro__)


def from_keras3(model: Any) -> tf_keras.Model:
    """Rebuilds a Keras 3 model in tf_keras, with its weights, names and `trainable` flags.

    Layers become the tf_keras layers that compute the same. Operations on tensors (`keras.ops`,
    slicing, arithmetic) become layers where one computes the same, otherwise TensorFlow calls.
    Subclassed models, and the user's own layers that hold no weights themselves, are traced: `call`
    runs on symbolic inputs, and the layers that it calls are the graph. The largest difference
    between the outputs of the two models on random input is measured and printed.

    Args:
        model: A built Keras 3 model, on any Keras 3 backend.

    Returns:
        The tf_keras model, Sequential or Functional, in float32. It is not compiled.

    Raises:
        UnsupportedModelError: The model is not built, its `call` cannot be traced, it holds a
            layer or operation that tf_keras lacks, or it computes something else after the
            conversion.

    Example:
        >>> import keras
        >>> import kdtflite
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="logits")])
        >>> kdtflite.models.from_keras3(model).get_layer("logits").units
        2
    """
    return convert_keras3(model).model


def convert_keras3(model: Any) -> Keras3Conversion:
    """Does as `from_keras3`, and also returns the largest difference of the two models.

    Args:
        model: A built Keras 3 model.

    Raises:
        UnsupportedModelError: As for `from_keras3`.
    """
    import keras as keras3

    from kdtflite.models.graphs import count_layers
    from kdtflite.models.keras3.graph import Rebuilder, get_symbolic_inputs
    from kdtflite.models.keras3.tracing import trace_keras3
    from kdtflite.models.parity import TOLERANCE, compare, draw_inputs, report_once
    from kdtflite.models.policy import use_float32

    if not isinstance(model, keras3.Model):
        raise UnsupportedModelError(
            "Expected a Keras 3 model (keras.Sequential or keras.Model). "
            f"Received: {type(model).__module__}.{type(model).__name__}."
        )
    graph = trace_keras3(model)
    rebuilder = Rebuilder()
    rebuilder.check(graph)
    source = _copy_in_float32(graph)
    with use_float32():
        target = rebuilder.build_model(source)
        rebuilder.copy_weights()
        rebuilder.copy_trainable(source)
    parity = compare(
        f"The Keras 3 model {model.name!r} was rebuilt in tf_keras",
        # A traced graph is compared with the call() that it was traced from.
        source if graph is model else model,
        target,
        draw_inputs(graph, get_symbolic_inputs(graph)),
        _ADVICE,
        tolerance=TOLERANCE if graph is model or source is graph else _HALF_TOLERANCE,
    )
    report_once(
        model,
        f"Keras 3 model {model.name!r} carried over to tf_keras: "
        f"{count_layers(target)} layers, {parity}.",
    )
    return Keras3Conversion(target, parity.difference)


def _copy_in_float32(model: Any) -> Any:
    """Returns the model itself, or a float32 copy if any of its layers computes otherwise."""
    import keras as keras3

    config = model.get_config()
    found = sorted(set(_list_float_types(config)))
    if not found:
        return model
    # Of a mixed policy, the half-precision dtype need not be named as well.
    named = [name for name in found if f"mixed_{name}" not in found]
    progress.say(
        f"The Keras 3 model {model.name!r} computes in {', '.join(named)}; "
        "it is rebuilt in float32."
    )
    sequential = isinstance(model, keras3.Sequential)
    copy = (keras3.Sequential if sequential else keras3.Model).from_config(_as_float32(config))
    copy.set_weights([np.asarray(value, dtype="float32") for value in model.get_weights()])
    return copy


def _list_float_types(config: Any) -> Iterator[str]:
    """Yields every dtype or dtype policy in a configuration that is a float but not float32."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            config = {"dtype": config["config"]["name"]}
        if config.get("dtype") in _FLOAT_TYPES:
            yield config["dtype"]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _list_float_types(value)


def _as_float32(config: Any) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            name = config["config"]["name"]
            return "float32" if name in _FLOAT_TYPES else name
        return {
            key: "float32"
            if key == "dtype" and isinstance(value, str) and value in _FLOAT_TYPES
            else _as_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [_as_float32(value) for value in config]
    return config
