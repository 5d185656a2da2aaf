"""Keras 3 models rebuilt in tf_keras, and proven to compute the same."""

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

__all__ = ["Keras3Conversion", "convert_keras3", "from_keras3", "is_keras3_model"]

_FLOAT_TYPES = ("float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")
# Of the largest output, where the model that was given computes in half precision.
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


def is_keras3_model(obj: Any) -> bool:
    """Says whether `obj` comes from Keras 3, without importing Keras 3.

    Any object whose class, or a base of it, is defined in the package `keras` counts: nothing
    else in an environment with kdtflite lives there, since Keras 2 is `tf_keras`.
    """
    if "keras" not in sys.modules:
        return False
    return any(base.__module__.split(".")[0] == "keras" for base in type(obj).__mro__)


def from_keras3(model: Any) -> tf_keras.Model:
    """Rebuilds a Keras 3 model in tf_keras, with its weights, names and `trainable` flags.

    Layers become the tf_keras layers that compute the same. Operations on tensors (`keras.ops`,
    slicing, arithmetic) become layers where one computes it, else TensorFlow's own calls.
    Subclassed models, and layers of one's own that hold no weights themselves, are traced: `call`
    runs on symbolic inputs, and what it calls is the graph. How far the outputs of the two
    models are apart on random input is measured and printed.

    Args:
        model: A built Keras 3 model, on any Keras 3 backend.

    Returns:
        The tf_keras model, Sequential or Functional, in float32. It is not compiled.

    Raises:
        UnsupportedModelError: The model is not built, its `call` cannot be traced, it holds a
            layer or operation that tf_keras lacks, or it computes something else after the
            conversion.

    Example:
        >>> teacher = kdtflite.models.from_keras3(keras.saving.load_model("teacher.keras"))
        Keras 3 model 'teacher' carried over to tf_keras: 12 layers, largest difference 3.6e-07 on
        random input (largest output 8.41).
    """
    return convert_keras3(model).model


def convert_keras3(model: Any) -> Keras3Conversion:
    """As `from_keras3`, and also says how far the two models are apart.

    Args:
        model: A built Keras 3 model.

    Raises:
        UnsupportedModelError: As for `from_keras3`.
    """
    from kdtflite.models.float32 import float32_policy
    from kdtflite.models.graphs import number_of_layers
    from kdtflite.models.keras3_graph import Rebuilder, input_structure, kind_of_model
    from kdtflite.models.keras3_tracing import traced_keras3
    from kdtflite.models.parity import TOLERANCE, compare, random_inputs, tell_once

    if kind_of_model(model) is None:
        raise UnsupportedModelError(
            "Expected a Keras 3 model (keras.Sequential or keras.Model). "
            f"Received: {type(model).__module__}.{type(model).__name__}."
        )
    graph = traced_keras3(model)
    rebuilder = Rebuilder()
    rebuilder.check(graph)
    source = _in_float32(graph)
    with float32_policy():
        target = rebuilder.model(source)
        rebuilder.copy_weights()
        rebuilder.copy_trainable(source)
    parity = compare(
        f"The Keras 3 model {model.name!r} was rebuilt in tf_keras",
        # What was traced is compared with the call() that it was traced from.
        source if graph is model else model,
        target,
        random_inputs(graph, input_structure(graph)),
        _ADVICE,
        tolerance=TOLERANCE if graph is model or source is graph else _HALF_TOLERANCE,
    )
    tell_once(
        model,
        f"Keras 3 model {model.name!r} carried over to tf_keras: "
        f"{number_of_layers(target)} layers, {parity}.",
    )
    return Keras3Conversion(target, parity.difference)


def _in_float32(model: Any) -> Any:
    """Returns the model itself, or a float32 copy if any of its layers computes otherwise."""
    import keras as keras3

    config = model.get_config()
    found = sorted(set(_float_types(config)))
    if not found:
        return model
    # A mixed policy's own half of it need not be named beside it.
    named = [name for name in found if f"mixed_{name}" not in found]
    progress.say(
        f"The Keras 3 model {model.name!r} computes in {', '.join(named)}; "
        "it is rebuilt in float32."
    )
    sequential = isinstance(model, keras3.Sequential)
    copy = (keras3.Sequential if sequential else keras3.Model).from_config(_as_float32(config))
    copy.set_weights([np.asarray(value, dtype="float32") for value in model.get_weights()])
    return copy


def _float_types(config: Any) -> Iterator[str]:
    """Yields every dtype or dtype policy in a configuration that is a float but not float32."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            config = {"dtype": config["config"]["name"]}
        if config.get("dtype") in _FLOAT_TYPES:
            yield config["dtype"]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _float_types(value)


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
