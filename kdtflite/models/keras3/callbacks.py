"""Converts callbacks of Keras 3 to tf_keras, or forwards to them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.errors import ConfigurationError
from kdtflite.models.keras3.configs import is_built_in
from kdtflite.models.keras3.conversion import is_from_keras3

__all__ = ["ForwardingCallback", "to_tf_keras_callback"]


def to_tf_keras_callback(obj: Any) -> Any:
    """Converts a Keras 3 callback for training with tf_keras.

    A built-in callback becomes that of tf_keras with the same name and arguments. The user's own
    subclass of keras.callbacks.Callback is wrapped: every hook is forwarded to it, its `model` is
    the tf_keras model, and its logs are plain floats. None and tf_keras callbacks pass through.

    Args:
        obj: One callback.

    Returns:
        A tf_keras callback, or None for None.

    Raises:
        ConfigurationError: `obj` is not a callback, or tf_keras lacks this built-in one.
    """
    if obj is None or isinstance(obj, keras.callbacks.Callback):
        return obj
    if not is_from_keras3(obj) or not _is_callback(obj):
        kind = f"the class {obj.__name__}" if isinstance(obj, type) else type(obj).__name__
        raise ConfigurationError(
            f"Expected a callback. Received: {kind}. Pass an instance of a subclass of "
            "keras.callbacks.Callback, of tf_keras or Keras 3."
        )
    name = type(obj).__name__
    if not is_built_in(obj) or name in _FORWARDED:
        return ForwardingCallback(obj)
    if name not in _CONVERTERS:
        raise ConfigurationError(
            f"The Keras 3 callback {name} cannot be carried over to tf_keras, which has no such "
            "callback. Leave it out, or write it as a subclass of tf_keras.callbacks.Callback."
        )
    return _CONVERTERS[name](obj)


class ForwardingCallback(keras.callbacks.Callback):
    """Forwards every hook of tf_keras' training to a Keras 3 callback.

    Args:
        callback: The Keras 3 callback. The logs that it adds reach the callbacks after it.
    """

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self.callback = callback

    def set_params(self, params: dict[str, Any]) -> None:
        """Passes the training parameters on."""
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        """Passes the tf_keras model on, as `Callback.model` of Keras 3."""
        super().set_model(model)
        self.callback.set_model(model)

    def _forward(self, hook: str, *args: Any, logs: dict[str, Any] | None) -> None:
        plain = {key: _to_plain(value) for key, value in (logs or {}).items()}
        before = dict(plain)
        getattr(self.callback, hook)(*args, plain)
        if logs is not None:
            logs.update({k: v for k, v in plain.items() if k not in before or before[k] is not v})


def _to_plain(value: Any) -> Any:
    array = np.asarray(value)
    return float(array) if array.size == 1 and array.dtype.kind in "biuf" else value


def _add_hooks() -> None:
    """Gives ForwardingCallback a method for each hook; Keras 3 itself has on_batch_* as aliases."""

    def make_indexed(hook: str) -> Callable[..., None]:
        def method(self: ForwardingCallback, index: int, logs: Any = None) -> None:
            self._forward(hook, index, logs=logs)

        return method

    def make_plain(hook: str) -> Callable[..., None]:
        def method(self: ForwardingCallback, logs: Any = None) -> None:
            self._forward(hook, logs=logs)

        return method

    for moment in ("begin", "end"):
        for phase in ("train", "test", "predict"):
            setattr(ForwardingCallback, f"on_{phase}_{moment}", make_plain(f"on_{phase}_{moment}"))
            batch = f"on_{phase}_batch_{moment}"
            setattr(ForwardingCallback, batch, make_indexed(batch))
        setattr(ForwardingCallback, f"on_epoch_{moment}", make_indexed(f"on_epoch_{moment}"))


_add_hooks()


def _is_callback(obj: Any) -> bool:
    return any(
        base.__module__ == "keras.src.callbacks.callback" and base.__name__ == "Callback"
        for base in type(obj).__mro__
    )


_RISING = re.compile(
    r"(acc|accuracy|auc|precision|recall|iou|mean_io_u|f1_score|fbeta_score|r2_score"
    r"|cosine_similarity|specificity|sensitivity\w*|top_k\w*|true_positives|true_negatives)$"
)
_FALLING = re.compile(
    r"(loss|error|crossentropy|hinge|mse|mae|mape|msle|divergence|logcosh|log_cosh|poisson"
    r"|huber|false_positives|false_negatives|learning_rate|lr)$"
)


def _find_mode(callback: Any) -> str:
    """Returns "min" or "max", also for "auto".

    Keras 3 asks the model's metric for its direction. tf_keras guesses from the name and would
    minimize precision and recall, so it is never left to guess.
    """
    if callback.mode in ("min", "max"):
        return str(callback.mode)
    name = re.sub(r"_\d+$", "", callback.monitor.removeprefix("val_"))
    if _FALLING.search(name):
        return "min"
    if _RISING.search(name):
        return "max"
    raise ConfigurationError(
        f"The Keras 3 callback {type(callback).__name__} monitors {callback.monitor!r} with "
        "mode='auto', but it is not known whether that should rise or fall. "
        "Pass mode='min' or mode='max'."
    )


def _make_copier(name: str, *same: str, **renamed: str) -> Callable[[Any], Any]:
    """Returns a converter that copies attributes by `same` names and argument=attribute pairs."""

    def convert(obj: Any) -> Any:
        arguments = {key: getattr(obj, key) for key in same}
        arguments |= {key: getattr(obj, attribute) for key, attribute in renamed.items()}
        return getattr(keras.callbacks, name)(**arguments)

    return convert


def _make_monitor(name: str, *same: str, delta: bool = True) -> Callable[[Any], Any]:
    def convert(obj: Any) -> Any:
        arguments = {key: getattr(obj, key) for key in ("monitor", "verbose", *same)}
        if delta:
            # Keras 3 flips its sign when training starts, for metrics that should fall.
            arguments["min_delta"] = abs(obj.min_delta)
        return getattr(keras.callbacks, name)(mode=_find_mode(obj), **arguments)

    return convert


def _convert_model_checkpoint(obj: Any) -> keras.callbacks.Callback:
    # Without save_best_only nothing is compared, so any mode will do.
    return keras.callbacks.ModelCheckpoint(
        filepath=obj.filepath,
        monitor=obj.monitor,
        verbose=obj.verbose,
        save_best_only=obj.save_best_only,
        save_weights_only=obj.save_weights_only,
        mode=_find_mode(obj) if obj.save_best_only else "auto",
        save_freq=obj.save_freq,
        initial_value_threshold=obj.best,
    )


def _convert_tensorboard(obj: Any) -> keras.callbacks.Callback:
    names = (
        *("log_dir", "histogram_freq", "write_graph", "write_images", "write_steps_per_second"),
        *("update_freq", "embeddings_freq", "embeddings_metadata"),
    )
    return keras.callbacks.TensorBoard(
        **{name: getattr(obj, name) for name in names},
        profile_batch=(obj._start_batch, obj._stop_batch) if obj._start_batch else 0,
    )


def _convert_terminate_on_nan(obj: Any) -> keras.callbacks.Callback:
    # The callback of tf_keras has no raise_error; that of Keras 3 works on any model.
    raises = getattr(obj, "raise_error", False)
    return ForwardingCallback(obj) if raises else keras.callbacks.TerminateOnNaN()


def _convert_backup_and_restore(obj: Any) -> keras.callbacks.Callback:
    if getattr(obj, "double_checkpoint", False):
        raise ConfigurationError(
            "The Keras 3 callback BackupAndRestore has double_checkpoint=True, which tf_keras "
            "lacks. Leave it out: tf_keras writes each checkpoint before it removes the last one."
        )
    return keras.callbacks.BackupAndRestore(
        backup_dir=obj.backup_dir,
        save_freq=obj.save_freq,
        delete_checkpoint=obj.delete_checkpoint,
    )


# Built-in callbacks that touch only the logs, or call the user's functions. The Keras 3 object
# itself does the work, so that a History in the user's hands is filled.
_FORWARDED = frozenset({"Callback", "History", "LambdaCallback"})

_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "BackupAndRestore": _convert_backup_and_restore,
    "CSVLogger": _make_copier("CSVLogger", "filename", "append", separator="sep"),
    "EarlyStopping": _make_monitor(
        "EarlyStopping", "patience", "baseline", "restore_best_weights", "start_from_epoch"
    ),
    "LearningRateScheduler": _make_copier("LearningRateScheduler", "schedule", "verbose"),
    "ModelCheckpoint": _convert_model_checkpoint,
    "ProgbarLogger": lambda obj: keras.callbacks.ProgbarLogger(count_mode="steps"),
    "ReduceLROnPlateau": _make_monitor(
        "ReduceLROnPlateau", "factor", "patience", "cooldown", "min_lr"
    ),
    "RemoteMonitor": _make_copier(
        "RemoteMonitor", "root", "path", "field", "headers", "send_as_json"
    ),
    "TensorBoard": _convert_tensorboard,
    "TerminateOnNaN": _convert_terminate_on_nan,
}
