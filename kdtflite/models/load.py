"""Loads model files of either Keras as tf_keras models."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdtflite.arguments import check_arguments
from kdtflite.errors import KdtfliteError, ModelFileError
from kdtflite.models.keras3.conversion import from_keras3
from kdtflite.models.model_files import ModelFile, open_model_file
from kdtflite.models.trust.allocation import bound_variables
from kdtflite.models.trust.configurations import refuse_untrusted
from kdtflite.models.trust.graphs import refuse_endless_graphs, refuse_large_shapes
from kdtflite.models.trust.saved_models import check_saved_model
from kdtflite.runtime import import_tfmot, quiet_tensorflow

if TYPE_CHECKING:
    import tf_keras

__all__ = ["keras_generation", "load_model"]

_OWN_LAYERS = "kdtflite>FakeQuantize"  # how files name the layers of quantize_aware


@check_arguments
def load_model(
    path: str | os.PathLike[str],
    *,
    unsafe: bool = False,
    custom_objects: Mapping[str, Any] | None = None,
) -> tf_keras.Model:
    """Loads a Keras model from a file, without its optimizer.

    Reads .keras and .h5 files of Keras 2 and Keras 3, and SavedModel folders that Keras 2 wrote.
    A Keras 3 model is rebuilt in tf_keras (see `from_keras3`). Models from `quantize_aware` load
    from every format, models wrapped by TFMOT from .h5 and SavedModel.

    Args:
        path: The file or folder.
        unsafe: Also load what runs code (Lambda layers), what reads or writes other files, and
            what takes far more memory than the file has bytes. Use this only for files that you
            trust: the code runs with your rights.
        custom_objects: The layers, losses and functions of your own that the file uses, by name.

    Returns:
        The tf_keras model, which is not compiled.

    Raises:
        ModelFileError: The file is missing, damaged, of another format, carries code, reaches
            other files, or declares far more than it holds.
        UnsupportedModelError: The file holds a Keras 3 model that cannot be rebuilt in tf_keras.

    Example:
        >>> import os, tempfile
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "teacher.keras")
        ...     model.save(path)
        ...     teacher = kdtflite.load_model(path)
        >>> teacher.output_shape
        (None, 2)
    """
    quiet_tensorflow()
    file = open_model_file(path, unsafe=unsafe)
    # Registers the layers and activations of models converted from Keras 3.
    import kdtflite.models.activations
    import kdtflite.models.layers

    if _OWN_LAYERS in json.dumps(file.configs):
        # The one import against the layers: a file of `quantize_aware` names its layers.
        import kdtflite.quantization.report  # noqa: F401

    objects = dict(custom_objects or {})
    refuse_untrusted(file, unsafe=unsafe, custom_objects=objects)
    refuse_large_shapes(file, unsafe=unsafe)
    refuse_endless_graphs(file)
    weight_bytes = file.weight_bytes
    if file.format == "savedmodel":
        weight_bytes = check_saved_model(file.path, unsafe=unsafe)
    load = _load_keras3 if file.generation == 3 else _load_keras2
    try:
        with bound_variables(file.path, weight_bytes, generation=file.generation, unsafe=unsafe):
            model = load(file, unsafe=unsafe, custom_objects=objects)
        return from_keras3(model) if file.generation == 3 else model
    except KdtfliteError:
        raise
    # Keras raises anything here: ValueError, TypeError, KeyError, AttributeError, OSError ...
    except Exception as error:
        raise ModelFileError(_explain(file, error)) from error


def keras_generation(path: str | os.PathLike[str]) -> int:
    """Returns the version of Keras, 2 or 3, that wrote a model file.

    Args:
        path: A .keras, .h5 or .hdf5 file, or a SavedModel folder.

    Raises:
        ModelFileError: The file is missing, damaged or of another format.
    """
    return open_model_file(path).generation


def _load_keras3(file: ModelFile, *, unsafe: bool, custom_objects: dict[str, Any]) -> Any:
    import keras as keras3

    return keras3.saving.load_model(
        str(file.path), custom_objects=custom_objects, compile=False, safe_mode=not unsafe
    )


def _load_keras2(
    file: ModelFile, *, unsafe: bool, custom_objects: dict[str, Any]
) -> tf_keras.Model:
    import tf_keras as keras

    from kdtflite.models.keras_internals import flatten_layers

    config = _name_functions(file.configs[0]) if file.format == "h5" else None
    with _enter_tfmot_scopes(file):
        if config is not None and config != file.configs[0]:
            model = keras.models.model_from_config(config, custom_objects=custom_objects)
            model.load_weights(str(file.path))
        else:
            model = keras.models.load_model(
                str(file.path), custom_objects=custom_objects, compile=False, safe_mode=not unsafe
            )
        if _OWN_LAYERS in json.dumps(file.configs):
            from kdtflite.quantization.report import restore_awareness

            restore_awareness(model)
    if not isinstance(model, keras.Model):
        raise ModelFileError(
            f"{file.path} holds a {type(model).__name__}, not a model. Save a model with "
            "model.save()."
        )
    if file.format == "savedmodel":
        model.optimizer = None  # it is restored even with compile=False, and cannot be used
    for layer in [model, *flatten_layers(model)]:
        if type(layer).__module__.endswith("saved_model.load"):
            raise ModelFileError(
                f"{file.path} needs custom code: layer {layer.name!r} is of a class that is not "
                "part of Keras, so only its graph was saved. Pass the class in custom_objects=, "
                "or rebuild the model with built-in layers."
            )
    return model


def _name_functions(config: Any) -> Any:
    """Replaces registered functions in a configuration by their names.

    tf_keras writes them to .h5 files as a dict that its own .h5 reader does not understand.
    """
    if isinstance(config, dict):
        if config.get("class_name") == "function" and isinstance(config.get("config"), str):
            return config["config"]
        return {key: _name_functions(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_name_functions(value) for value in config]
    return config


@contextlib.contextmanager
def _enter_tfmot_scopes(file: ModelFile) -> Any:
    """Makes the layers of TFMOT known in the block, if the file uses them."""
    text = json.dumps(file.configs)
    with contextlib.ExitStack() as stack:
        # Importing TFMOT takes a second.
        if "QuantizeWrapper" in text or "QuantizeLayer" in text:
            stack.enter_context(import_tfmot().quantization.keras.quantize_scope())
        if "PruneLowMagnitude" in text:
            stack.enter_context(import_tfmot().sparsity.keras.prune_scope())
        if "Cluster" in text:
            stack.enter_context(import_tfmot().clustering.keras.cluster_scope())
        yield


def _explain(file: ModelFile, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if file.format == "keras" and "QuantizeWrapper" in json.dumps(file.configs):
        return (
            f"{file.path} holds a model wrapped by TFMOT, and the .keras format loses what is "
            "needed to load it. Save it as .h5 or as a SavedModel folder instead."
        )
    return (
        f"{file.path} could not be loaded by Keras {file.generation}: {type(error).__name__}: "
        f"{reason[:300]} Save the model again with the installed Keras, or pass its classes "
        "in custom_objects=."
    )
