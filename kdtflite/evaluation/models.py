"""Keras models and .tflite files behind one interface: their predictions and their outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtflite.errors import ShapeMismatchError
from kdtflite.lite.model import LiteModel, as_lite_model, is_keras_path
from kdtflite.lite.operators import KEEP_VALUES, PROBABILITIES

if TYPE_CHECKING:
    import tf_keras as keras

__all__ = [
    "as_model",
    "find_output_kind",
    "find_output_step",
    "predict",
]


def as_model(model: Any) -> LiteModel | keras.Model:
    """Returns a file as a LiteModel, and anything else as a tf_keras model.

    Args:
        model: What `as_lite_model` or `as_tf_keras` takes.

    Raises:
        ModelFileError: The path cannot be loaded.
        UnsupportedModelError: Neither a .tflite file nor a Keras model.
    """
    if isinstance(model, LiteModel | bytes | bytearray | memoryview):
        return as_lite_model(model)
    if isinstance(model, str | os.PathLike) and not is_keras_path(model):
        return as_lite_model(model)
    # Here: a file alone needs no TensorFlow.
    from kdtflite.models.as_tf_keras import as_tf_keras

    return as_tf_keras(model)


def predict(
    model: LiteModel | keras.Model,
    x: np.ndarray | Mapping[str, np.ndarray],
    *,
    workers: int | None = 1,
    batch_size: int = 256,
    xnnpack: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """Returns the one output of a model for every sample, as real values.

    Args:
        model: A LiteModel or a tf_keras model.
        x: Samples, shape (samples, ...), or a dict of them by input name.
        workers: How many interpreters run in parallel, for a LiteModel.
        batch_size: Samples per step, for a Keras model.
        xnnpack: LiteRT's default delegate, for a LiteModel; False runs the built-in kernels.
        progress: Show progress.

    Returns:
        Outputs, shape (samples, ...), float32.

    Raises:
        ShapeMismatchError: The model has several outputs.
    """
    if isinstance(model, LiteModel):
        outputs = model.predict(x, workers=workers, xnnpack=xnnpack, progress=progress)
    else:
        # Keras' own bar is for a terminal; in a log it writes one line per step.
        from kdtflite.progress import console

        verbose = 1 if progress and console.is_terminal else 0
        outputs = model.predict(x, batch_size=batch_size, verbose=verbose)
    if isinstance(outputs, (dict, list, tuple)):
        raise ShapeMismatchError(
            f"Expected a model with one output. Received: {len(outputs)} outputs. "
            "Make a model of the output to be measured."
        )
    return np.asarray(outputs)


def find_output_kind(model: LiteModel | keras.Model) -> tuple[str, str] | None:
    """Returns ("probabilities" or "logits", where that is read from), or None if unknown."""
    if isinstance(model, LiteModel):
        return _find_kind_in_file(model)
    return _find_kind_in_keras(model)


def find_output_step(model: LiteModel | keras.Model) -> float | None:
    """Returns the step between two values of a file's output, or None for a float model.

    A float output that only dequantizes an integer tensor still moves in that tensor's steps.
    """
    if not isinstance(model, LiteModel):
        return None
    if model.outputs[0].scale is not None:
        return model.outputs[0].scale
    producers = {index: op for op in _list_main_operators(model) for index in op.outputs}
    last = producers.get(model.outputs[0].index)
    if last is None or last.name != "DEQUANTIZE":
        return None
    scales = next(t.scales for t in model.tensors if t.subgraph == 0 and t.index == last.inputs[0])
    return float(scales[0]) if len(scales) == 1 else None


def _list_main_operators(model: LiteModel) -> list[Any]:
    return [operator for operator in model.operators if operator.subgraph == 0]


def _find_kind_in_file(model: LiteModel) -> tuple[str, str] | None:
    producers = {index: op for op in _list_main_operators(model) for index in op.outputs}
    operator = producers.get(model.outputs[0].index)
    while operator is not None and operator.name in KEEP_VALUES:
        operator = producers.get(operator.inputs[0])
    if operator is None:
        return None
    kind = "probabilities" if operator.name in PROBABILITIES else "logits"
    return kind, f"the file's last operator, {operator.name}"


def _find_kind_in_keras(model: keras.Model) -> tuple[str, str] | None:
    from kdtflite.models.keras_internals import get_history

    history = get_history(getattr(model, "output", None))
    layer = getattr(history, "layer", None)
    # Wrappers of quantization, pruning and clustering hold the layer that acts.
    while layer is not None and hasattr(layer, "layer"):
        layer = layer.layer
    if layer is None:
        return None
    activation = getattr(layer, "activation", None)
    # TFMOT puts a QuantizeAwareActivation around the function.
    activation = getattr(activation, "activation", activation)
    name = getattr(activation, "__name__", "") or type(layer).__name__.lower()
    where = f"the last layer, {layer.name}"
    if name in ("softmax", "sigmoid"):
        return "probabilities", f"{where} ({name})"
    if name in ("linear", "log_softmax"):
        return "logits", f"{where} ({name})"
    return None
