"""Callbacks of a training: what the user gave, and what moves its schedules on."""

from __future__ import annotations

from typing import Any, Protocol

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras3_callbacks import to_tf_keras_callback

__all__ = ["Scheduled", "all_callbacks"]


class Scheduled(Protocol):
    """What has schedules."""

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Moves every schedule on to `epoch`, from 0, of `epochs`."""


def all_callbacks(callbacks: Any, *scheduled: Scheduled) -> Any:
    """Returns what `fit` takes as callbacks: those that move schedules first, then the user's.

    Args:
        callbacks: None, a callback, a list or a CallbackList; Keras 3 ones are converted.
        scheduled: Whose schedules move on at the start of every epoch.
    """
    first = [_Schedules(each) for each in scheduled]
    if isinstance(callbacks, keras.callbacks.CallbackList):
        for callback in first:
            callbacks.append(callback)
        return callbacks
    given = [] if callbacks is None else tf.nest.flatten(callbacks)
    return [*first, *(to_tf_keras_callback(callback) for callback in given)]


class _Schedules(keras.callbacks.Callback):
    """Builds the optimizer, and moves weights and temperatures on at the start of every epoch."""

    def __init__(self, scheduled: Scheduled) -> None:
        super().__init__()
        self.scheduled = scheduled

    def on_train_begin(self, logs: Any = None) -> None:
        del logs
        # BackupAndRestore would build it for the student's variables alone, not for the losses'.
        if hasattr(self.model.optimizer, "build"):
            self.model.optimizer.build(self.model.trained_variables)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.scheduled.begin_epoch(epoch, self.params["epochs"])
