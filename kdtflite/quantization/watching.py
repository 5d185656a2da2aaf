"""A model whose own `fit` stops when it diverges."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.checks.finite import StopUnlessFinite

__all__ = ["watch_training"]


def watch_training(model: keras.Model) -> None:
    """Lets `model.fit` raise TrainingError when the loss or a weight is NaN or infinite.

    With the callback TerminateOnNaN the training ends without an error, as in Keras.

    Args:
        model: The model. A Distiller that trains it has its own watch.
    """
    fit = model.fit
    signature = inspect.signature(fit)

    @functools.wraps(fit)
    def fit_watched(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["callbacks"] = _add_watch(bound.arguments.get("callbacks"))
        return fit(*bound.args, **bound.kwargs)

    # Keras would track what is set on a model.
    object.__setattr__(model, "fit", fit_watched)


def _add_watch(callbacks: Any) -> Any:
    listed = isinstance(callbacks, keras.callbacks.CallbackList)
    given = callbacks.callbacks if listed else tf.nest.flatten(callbacks or [])
    if any(isinstance(each, keras.callbacks.TerminateOnNaN) for each in given):
        return callbacks
    if not listed:
        return [StopUnlessFinite(), *given]
    callbacks.append(StopUnlessFinite())
    return callbacks
