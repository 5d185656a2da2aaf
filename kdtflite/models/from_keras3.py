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

_TOLERANCE = 1e-4  # of the largest output, in float32
_FLOAT_TYPES = ("float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")


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

    Args:
        model: A built Keras 3 Sequential or Functional model, on any Keras 3 backend.

    Returns:
        The tf_keras model, in float32. It is not compiled.

    Raises:
        UnsupportedModelError: The model is subclassed, holds a layer or operation that tf_keras
            lacks, or computes something else after the conversion.

    Example:
        >>> teacher = kdtflite.models.from_keras3(keras.saving.load_model("teacher.keras"))
    """
    return convert_keras3(model).model


def convert_keras3(model: Any) -> Keras3Conversion:
    """As `from_keras3`, and also says how far the two models are apart.

    Args:
        model: A built Keras 3 Sequential or Functional model.

    Raises:
        UnsupportedModelError: As for `from_keras3`.
    """
    from kdtflite.models.keras3_graph import Rebuilder, kind_of_model

    if kind_of_model(model) is None:
        raise UnsupportedModelError(
            "Expected a Keras 3 model (keras.Sequential or keras.Model). "
            f"Received: {type(model).__module__}.{type(model).__name__}."
        )
    rebuilder = Rebuilder()
    rebuilder.check(model)
    source = _in_float32(model)
    target = rebuilder.model(source)
    rebuilder.copy_weights()
    rebuilder.copy_trainable(source)
    return Keras3Conversion(target, _proven_difference(source, target))


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


def _proven_difference(source: Any, target: tf_keras.Model) -> float:
    """Runs both models on the same random inputs and returns the largest difference."""
    inputs = _random_inputs(source)
    expected = _arrays(source(inputs, training=False))
    received = _arrays(target(inputs, training=False))
    shapes = ([array.shape for array in expected], [array.shape for array in received])
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            f"The Keras 3 model {source.name!r} was rebuilt in tf_keras, but its outputs changed "
            f"shape. Expected: {shapes[0]}. Received: {shapes[1]}. Rebuild it with tf_keras."
        )
    difference = scale = 0.0
    for one, other in zip(expected, received, strict=True):
        both_nan = np.isnan(one) & np.isnan(other)
        gaps = np.where(both_nan | (one == other), 0.0, np.abs(one - other))
        # A NaN or infinity on one side only must not pass a comparison with `>`.
        difference = max(difference, float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0)))
        scale = max(scale, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
    if difference > _TOLERANCE * scale:
        raise UnsupportedModelError(
            f"The Keras 3 model {source.name!r} was rebuilt in tf_keras, but its outputs differ "
            f"by up to {difference:.3g}, where the largest output is {scale:.3g}. Expected at most "
            f"{_TOLERANCE:g} of that. Rebuild the model with tf_keras (`import tf_keras as "
            "keras`) and load its weights there."
        )
    return difference


def _arrays(outputs: Any) -> list[np.ndarray]:
    if isinstance(outputs, dict):
        return [array for key in sorted(outputs) for array in _arrays(outputs[key])]
    if isinstance(outputs, list | tuple):
        return [array for output in outputs for array in _arrays(output)]
    import keras as keras3

    return [np.asarray(keras3.ops.convert_to_numpy(outputs), dtype="float64")]


def _random_inputs(model: Any) -> Any:
    """Makes a small random batch for each input, in the structure that the model is called with."""
    from kdtflite.models.keras3_graph import input_configs, map_references

    rng = np.random.default_rng(0)
    indices = _feeding_indices(model)
    vocabulary = min(_vocabularies(model), default=10)

    def make(name: str, spec: dict[str, Any]) -> np.ndarray:
        shape = list(spec["batch_shape"])
        shape[0] = shape[0] or 2
        # Images must survive every stride of a net that leaves its input size open.
        free = 64 if len(shape) == 4 else 16
        shape = [size or free for size in shape]
        dtype = str(spec["dtype"])
        if dtype == "bool":
            return rng.random(shape) < 0.5
        if dtype == "string":
            raise UnsupportedModelError(
                f"The Keras 3 model {model.name!r} takes strings at input {name!r}. "
                "Move text handling out of the model and give it numbers."
            )
        if name in indices or "int" in dtype:
            top = 256 if dtype == "uint8" and name not in indices else vocabulary
            return rng.integers(0, top, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    inputs = {name: make(name, spec) for name, spec in input_configs(model).items()}
    config = model.get_config()
    if "input_layers" not in config:
        return next(iter(inputs.values()))
    return map_references(config["input_layers"], lambda name, _node, _index: inputs[name])


def _feeding_indices(model: Any) -> set[str]:
    """Returns the names of the inputs that go straight into an Embedding: indices, not values."""
    from kdtflite.models.keras3_graph import input_configs

    config = model.get_config()
    names = set(input_configs(model))
    if "input_layers" not in config:
        return names if model.layers and _takes_indices(model.layers[0]) else set()
    layers = {layer.name: layer for layer in model.layers}
    found = set()
    for item in config["layers"]:
        layer = layers.get(item["name"])
        if layer is None or not _takes_indices(layer):
            continue
        for node in item["inbound_nodes"]:
            found |= names & set(_references(node["args"]))
    return found


def _takes_indices(layer: Any) -> bool:
    if type(layer).__name__ in ("Embedding", "CategoryEncoding"):
        return True
    return bool(getattr(layer, "inputs", None)) and bool(_feeding_indices(layer))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
            return
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)


def _vocabularies(model: Any) -> Iterator[int]:
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _vocabularies(layer)
        for name in ("input_dim", "num_tokens"):
            if isinstance(getattr(layer, name, None), int):
                yield getattr(layer, name)
