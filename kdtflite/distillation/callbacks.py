"""The callbacks of a training beside the user's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.checks.finite import StopUnlessFinite
from kdtflite.models.keras3.callbacks import to_tf_keras_callback

__all__ = ["append_callbacks", "build_callbacks"]


def build_callbacks(callbacks: Any, *distillers: Any, watched: Sequence[keras.Model] = ()) -> Any:
    """Returns what `fit` takes as callbacks: first those of a training, then the user's.

    Args:
        callbacks: None, a callback, a list or a CallbackList; Keras 3 ones are converted.
        distillers: Their schedules move at the start of every epoch.
        watched: Models whose training stops with an error when it diverges.
    """
    first: list[keras.callbacks.Callback] = [_MoveSchedules(distiller) for distiller in distillers]
    listed = isinstance(callbacks, keras.callbacks.CallbackList)
    given = (
        [] if callbacks is None else tf.nest.flatten(callbacks.callbacks if listed else callbacks)
    )
    given = [to_tf_keras_callback(callback) for callback in given]
    if watched and not any(isinstance(each, keras.callbacks.TerminateOnNaN) for each in given):
        first.append(StopUnlessFinite(watched))
    return append_callbacks(callbacks, *first) if listed else [*first, *given]


def append_callbacks(callbacks: Any, *more: keras.callbacks.Callback) -> Any:
    """Returns a list or CallbackList of callbacks with more at its end."""
    for callback in more:
        callbacks.append(callback)
    return callbacks


class _MoveSchedules(keras.callbacks.Callback):
    """Builds the optimizer, and moves weights and temperatures at the start of every epoch."""

    def __init__(self, distiller: Any) -> None:
        super().__init__()
        self.distiller = distiller

    def on_train_begin(self, logs: Any = None) -> None:
        del logs
        # BackupAndRestore would build it for the student's variables alone, not for the losses'.
        if hasattr(self.model.optimizer, "build"):
            self.model.optimizer.build(self.model.trained_variables)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.distiller.begin_epoch(epoch, self.params["epochs"])
