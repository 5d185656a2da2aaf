"""Model files of any Keras, loaded as tf_keras models."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdtflite.errors import KdtfliteError, ModelFileError
from kdtflite.models.from_keras3 import from_keras3
from kdtflite.models.model_files import ModelFile, open_model_file
from kdtflite.models.trust import refuse_untrusted
from kdtflite.runtime import import_tfmot, quiet_tensorflow

if TYPE_CHECKING:
    import tf_keras

__all__ = ["keras_generation", "load_model"]

_OWN_LAYERS = "kdtflite>FakeQuantize"  # how files name the layers of quantize_aware


def load_model(
    path: str | os.PathLike[str],
    *,
    unsafe: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
) -> tf_keras.Model:
    """Loads a Keras model from a file, without its optimizer.

    Reads .keras and .h5 files of Keras 2 and Keras 3, and SavedModel folders that Keras 2 wrote.
    A Keras 3 model is rebuilt in tf_keras (see `from_keras3`). Models from
    `quantize_aware` load from each format; those wrapped by TFMOT from .h5 and SavedModel.

    Args:
        path: The file or folder.
        unsafe: Load code that the file carries (Lambda layers) too; it then runs with your
            rights, so only for files that you trust.
        custom_objects: Your own layers, losses and functions that the file uses, by name.

    Returns:
        The tf_keras model, not compiled.

    Raises:
        ModelFileError: The file is missing, damaged, of another format, or carries code.
        UnsupportedModelError: It is a Keras 3 model that cannot be carried over to tf_keras.

    Example:
        >>> teacher = kdtflite.models.load_model("teacher.keras")
    """
    quiet_tensorflow()
    file = open_model_file(path)
    # Registers what a model converted from Keras 3 may use.
    import kdtflite.models.activations
    import kdtflite.models.layers

    if _OWN_LAYERS in json.dumps(file.configs):
        # The one step to the right in the layout: a file of `quantize_aware` names its layers.
        import kdtflite.quantization.report  # noqa: F401

    objects = dict(custom_objects or {})
    refuse_untrusted(file, unsafe=unsafe, custom_objects=objects)
    try:
        if file.generation == 3:
            return _load_keras3(file, unsafe=unsafe, custom_objects=objects)
        return _load_keras2(file, unsafe=unsafe, custom_objects=objects)
    except KdtfliteError:
        raise
    # Keras raises anything here: ValueError, TypeError, KeyError, AttributeError, OSError ...
    except Exception as error:
        raise ModelFileError(_failure(file, error)) from error


def keras_generation(path: str | os.PathLike[str]) -> int:
    """Returns which Keras wrote a model file, 2 or 3.

    Args:
        path: A .keras, .h5 or .hdf5 file, or a SavedModel folder.

    Raises:
        ModelFileError: The file is missing, damaged or of another format.
    """
    return open_model_file(path).generation


def _load_keras3(
    file: ModelFile, *, unsafe: bool, custom_objects: dict[str, Any]
) -> tf_keras.Model:
    import keras as keras3

    model = keras3.saving.load_model(
        str(file.path), custom_objects=custom_objects, compile=False, safe_mode=not unsafe
    )
    return from_keras3(model)


def _load_keras2(
    file: ModelFile, *, unsafe: bool, custom_objects: dict[str, Any]
) -> tf_keras.Model:
    import tf_keras as keras

    config = _with_named_functions(file.configs[0]) if file.format == "h5" else None
    with _tfmot_scopes(file):
        if config is not None and config != file.configs[0]:
            model = keras.models.model_from_config(config, custom_objects=custom_objects)
            model.load_weights(str(file.path))
        else:
            model = keras.models.load_model(
                str(file.path), custom_objects=custom_objects, compile=False, safe_mode=not unsafe
            )
        if _OWN_LAYERS in json.dumps(file.configs):
            from kdtflite.quantization.report import awareness_of

            model.quantization = awareness_of(model)
    if not isinstance(model, keras.Model):
        raise ModelFileError(
            f"{file.path} holds a {type(model).__name__}, not a model. Save a model with "
            "model.save()."
        )
    if file.format == "savedmodel":
        model.optimizer = None  # restored even with compile=False, and unusable
    for layer in model._flatten_layers():
        if type(layer).__module__.endswith("saved_model.load"):
            raise ModelFileError(
                f"{file.path} needs custom code: layer {layer.name!r} is of a class that is not "
                "part of Keras, so only its graph was saved. Pass the class in custom_objects=, "
                "or rebuild the model with built-in layers."
            )
    return model


def _with_named_functions(config: Any) -> Any:
    """Returns a configuration with registered functions by name alone.

    tf_keras writes them to .h5 files as a dict that its own .h5 reader does not understand.
    """
    if isinstance(config, dict):
        if config.get("class_name") == "function" and isinstance(config.get("config"), str):
            return config["config"]
        return {key: _with_named_functions(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_with_named_functions(value) for value in config]
    return config


@contextlib.contextmanager
def _tfmot_scopes(file: ModelFile) -> Any:
    """Makes TFMOT's layers known while a file that uses them is loaded."""
    text = json.dumps(file.configs)
    with contextlib.ExitStack() as stack:
        # TFMOT takes a second to import, so only where it is needed.
        if "QuantizeWrapper" in text or "QuantizeLayer" in text:
            stack.enter_context(import_tfmot().quantization.keras.quantize_scope())
        if "PruneLowMagnitude" in text:
            stack.enter_context(import_tfmot().sparsity.keras.prune_scope())
        if "Cluster" in text:
            stack.enter_context(import_tfmot().clustering.keras.cluster_scope())
        yield


def _failure(file: ModelFile, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if file.format == "keras" and "QuantizeWrapper" in json.dumps(file.configs):
        return (
            f"{file.path} holds a model wrapped by TFMOT, and the .keras format loses what is "
            "needed to load it. Save it as .h5 or as a SavedModel folder instead."
        )
    return (
        f"{file.path} could not be loaded by Keras {file.generation}: {type(error).__name__}: "
        f"{reason[:300]} Save the model again with the installed Keras, or pass its own classes "
        "in custom_objects=."
    )
