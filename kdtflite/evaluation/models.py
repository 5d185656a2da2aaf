"""Models of any accepted kind, asked the same way: what do you predict, and what is it?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtflite.errors import ShapeMismatchError
from kdtflite.litemodel import LiteModel

if TYPE_CHECKING:
    import tf_keras as keras

__all__ = [
    "as_lite_model",
    "as_model",
    "invoked_on_zeros",
    "last_activation",
    "output_step",
    "predict",
]

_PROBABILITIES = frozenset({"SOFTMAX", "LOGISTIC"})
# These move or re-encode values; what the values are was decided before them.
_PASSING = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST"})


def as_model(model: Any) -> LiteModel | keras.Model:
    """Returns a LiteModel as it is, a path to a `.tflite` loaded, any Keras model as tf_keras.

    Raises:
        ModelFileError: The path cannot be loaded.
        UnsupportedModelError: Neither a LiteModel, a path nor a Keras model.
    """
    if isinstance(model, LiteModel):
        return model
    if isinstance(model, (str, os.PathLike)):
        return LiteModel.load(Path(model))
    from kdtflite.models.as_tf_keras import as_tf_keras

    return as_tf_keras(model)


def as_lite_model(model: Any) -> LiteModel:
    """Returns a LiteModel as it is and a path to a `.tflite` loaded.

    Raises:
        ModelFileError: The path cannot be loaded.
        UnsupportedModelError: Neither a LiteModel nor a path.
    """
    from kdtflite.errors import UnsupportedModelError

    if isinstance(model, (LiteModel, str, os.PathLike)):
        return as_model(model)
    raise UnsupportedModelError(
        f"Expected a LiteModel or the path of a .tflite file. Received: {type(model).__name__}. "
        "Convert a Keras model with kdtflite.convert first."
    )


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
        workers: Interpreters side by side, for a LiteModel.
        batch_size: Samples a step of a Keras model.
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
        # Keras' own bar is for a terminal; in a log it writes a line a step.
        from kdtflite.progress import console

        verbose = 1 if progress and console.is_terminal else 0
        outputs = model.predict(x, batch_size=batch_size, verbose=verbose)
    if isinstance(outputs, (dict, list, tuple)):
        raise ShapeMismatchError(
            f"Expected a model with one output. Received: {len(outputs)} outputs. "
            "Make a model of the output to be measured."
        )
    return np.asarray(outputs)


def invoked_on_zeros(model: LiteModel) -> Any:
    """Returns an interpreter with the built-in kernels after one invoke on zeros.

    Only then has every tensor its shape and memory: after a reshape by computed sizes (a dense
    layer on sequences) both are known at run time only. Zeros, as whatever lies in fresh memory
    would be no valid token id.
    """
    interpreter = model.interpreter(xnnpack=False)
    for spec in model.inputs:
        interpreter.set_tensor(spec.index, np.zeros(spec.shape, spec.dtype))
    interpreter.invoke()
    return interpreter


def last_activation(model: LiteModel | keras.Model) -> tuple[str, str] | None:
    """Returns ("probabilities" or "logits", where that is read from), or None if nothing says."""
    if isinstance(model, LiteModel):
        return _of_file(model)
    return _of_keras(model)


def output_step(model: LiteModel | keras.Model) -> float | None:
    """Returns the step between two values of a file's output, or None for a float model.

    A float output that only dequantizes an integer tensor still moves in that tensor's steps.
    """
    if not isinstance(model, LiteModel):
        return None
    if model.outputs[0].scale is not None:
        return model.outputs[0].scale
    producers = {index: op for op in _main(model) for index in op.outputs}
    last = producers.get(model.outputs[0].index)
    if last is None or last.name != "DEQUANTIZE":
        return None
    scales = next(t.scales for t in model.tensors if t.subgraph == 0 and t.index == last.inputs[0])
    return float(scales[0]) if len(scales) == 1 else None


def _main(model: LiteModel) -> list[Any]:
    return [operator for operator in model.operators if operator.subgraph == 0]


def _of_file(model: LiteModel) -> tuple[str, str] | None:
    producers = {index: op for op in _main(model) for index in op.outputs}
    operator = producers.get(model.outputs[0].index)
    while operator is not None and operator.name in _PASSING:
        operator = producers.get(operator.inputs[0])
    if operator is None:
        return None
    kind = "probabilities" if operator.name in _PROBABILITIES else "logits"
    return kind, f"the file's last operator, {operator.name}"


def _of_keras(model: keras.Model) -> tuple[str, str] | None:
    history = getattr(getattr(model, "output", None), "_keras_history", None)
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
