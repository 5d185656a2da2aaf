"""Callbacks of Keras 3 for training with tf_keras: made again, or forwarded to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.errors import ConfigurationError
from kdtflite.models.from_keras3 import is_keras3_model
from kdtflite.models.keras3_configs import is_built_in

__all__ = ["ForwardingCallback", "to_tf_keras_callback"]


def to_tf_keras_callback(obj: Any) -> Any:
    """Makes a Keras 3 callback fit for training with tf_keras.

    A built-in one becomes tf_keras' of the same name with the same arguments. A user's own
    subclass of keras.callbacks.Callback is wrapped: every hook is forwarded to it, its `model`
    is the tf_keras model, and its logs are plain floats. None and tf_keras callbacks pass
    through.

    Args:
        obj: One callback.

    Returns:
        A tf_keras callback, or None for None.

    Raises:
        ConfigurationError: `obj` is no callback, or a built-in one that tf_keras has no equal of.
    """
    if obj is None or isinstance(obj, keras.callbacks.Callback):
        return obj
    if not is_keras3_model(obj) or not _is_callback(obj):
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
            "callback. Leave it out, or write what it does as a subclass of "
            "tf_keras.callbacks.Callback."
        )
    return _CONVERTERS[name](obj)


class ForwardingCallback(keras.callbacks.Callback):
    """Forwards every hook of tf_keras' training to a Keras 3 callback.

    Args:
        callback: The Keras 3 callback. What it adds to the logs reaches the callbacks after it.
    """

    def __init__(self, callback: Any) -> None:
        super().__init__()
        self.callback = callback

    def set_params(self, params: dict[str, Any]) -> None:
        """Hands on the training parameters."""
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: keras.Model) -> None:
        """Hands on the tf_keras model; Keras 3's `Callback.model` then gives it."""
        super().set_model(model)
        self.callback.set_model(model)

    def _forward(self, hook: str, *args: Any, logs: dict[str, Any] | None) -> None:
        plain = {key: _plain(value) for key, value in (logs or {}).items()}
        before = dict(plain)
        getattr(self.callback, hook)(*args, plain)
        if logs is not None:
            logs.update({k: v for k, v in plain.items() if k not in before or before[k] is not v})


def _plain(value: Any) -> Any:
    array = np.asarray(value)
    return float(array) if array.size == 1 and array.dtype.kind in "biuf" else value


def _add_hooks() -> None:
    """Gives ForwardingCallback a method for each hook; on_batch_* are aliases inside Keras 3."""

    def counted(hook: str) -> Callable[..., None]:
        def method(self: ForwardingCallback, index: int, logs: Any = None) -> None:
            self._forward(hook, index, logs=logs)

        return method

    def uncounted(hook: str) -> Callable[..., None]:
        def method(self: ForwardingCallback, logs: Any = None) -> None:
            self._forward(hook, logs=logs)

        return method

    for moment in ("begin", "end"):
        for phase in ("train", "test", "predict"):
            setattr(ForwardingCallback, f"on_{phase}_{moment}", uncounted(f"on_{phase}_{moment}"))
            batch = f"on_{phase}_batch_{moment}"
            setattr(ForwardingCallback, batch, counted(batch))
        setattr(ForwardingCallback, f"on_epoch_{moment}", counted(f"on_epoch_{moment}"))


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


def _mode(callback: Any) -> str:
    """Returns "min" or "max", resolving "auto".

    Keras 3 asks the model's metric for its direction; tf_keras guesses from the name, and takes
    precision and recall for things to minimize. So nothing is left to guess there.
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
        "mode='auto', and whether more or less of that is better is not known. "
        "Pass mode='min' or mode='max'."
    )


def _copier(name: str, *same: str, **renamed: str) -> Callable[[Any], Any]:
    """Returns a converter that copies attributes: `same` names, and argument=attribute pairs."""

    def convert(obj: Any) -> Any:
        arguments = {key: getattr(obj, key) for key in same}
        arguments |= {key: getattr(obj, attribute) for key, attribute in renamed.items()}
        return getattr(keras.callbacks, name)(**arguments)

    return convert


def _monitoring(name: str, *same: str, delta: bool = True) -> Callable[[Any], Any]:
    def convert(obj: Any) -> Any:
        arguments = {key: getattr(obj, key) for key in ("monitor", "verbose", *same)}
        if delta:
            # Keras 3 turns its sign when training starts, for metrics that should fall.
            arguments["min_delta"] = abs(obj.min_delta)
        return getattr(keras.callbacks, name)(mode=_mode(obj), **arguments)

    return convert


def _model_checkpoint(obj: Any) -> keras.callbacks.Callback:
    # With save_best_only off nothing is compared, so any monitor will do.
    return keras.callbacks.ModelCheckpoint(
        filepath=obj.filepath,
        monitor=obj.monitor,
        verbose=obj.verbose,
        save_best_only=obj.save_best_only,
        save_weights_only=obj.save_weights_only,
        mode=_mode(obj) if obj.save_best_only else "auto",
        save_freq=obj.save_freq,
        initial_value_threshold=obj.best,
    )


def _tensorboard(obj: Any) -> keras.callbacks.Callback:
    names = (
        *("log_dir", "histogram_freq", "write_graph", "write_images", "write_steps_per_second"),
        *("update_freq", "embeddings_freq", "embeddings_metadata"),
    )
    return keras.callbacks.TensorBoard(
        **{name: getattr(obj, name) for name in names},
        profile_batch=(obj._start_batch, obj._stop_batch) if obj._start_batch else 0,
    )


def _terminate_on_nan(obj: Any) -> keras.callbacks.Callback:
    # tf_keras' has no raise_error; Keras 3's own works on any model.
    raises = getattr(obj, "raise_error", False)
    return ForwardingCallback(obj) if raises else keras.callbacks.TerminateOnNaN()


def _backup_and_restore(obj: Any) -> keras.callbacks.Callback:
    if getattr(obj, "double_checkpoint", False):
        raise ConfigurationError(
            "The Keras 3 callback BackupAndRestore has double_checkpoint=True, which tf_keras "
            "lacks. Leave it out: tf_keras writes each checkpoint before it removes the last."
        )
    return keras.callbacks.BackupAndRestore(
        backup_dir=obj.backup_dir,
        save_freq=obj.save_freq,
        delete_checkpoint=obj.delete_checkpoint,
    )


# Built-in callbacks that touch nothing but the logs, or call functions that the user gave: Keras
# 3's own object does the work, so a History that the user holds is the one that is filled.
_FORWARDED = frozenset({"Callback", "History", "LambdaCallback"})

_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "BackupAndRestore": _backup_and_restore,
    "CSVLogger": _copier("CSVLogger", "filename", "append", separator="sep"),
    "EarlyStopping": _monitoring(
        "EarlyStopping", "patience", "baseline", "restore_best_weights", "start_from_epoch"
    ),
    "LearningRateScheduler": _copier("LearningRateScheduler", "schedule", "verbose"),
    "ModelCheckpoint": _model_checkpoint,
    "ProgbarLogger": lambda obj: keras.callbacks.ProgbarLogger(count_mode="steps"),
    "ReduceLROnPlateau": _monitoring(
        "ReduceLROnPlateau", "factor", "patience", "cooldown", "min_lr"
    ),
    "RemoteMonitor": _copier("RemoteMonitor", "root", "path", "field", "headers", "send_as_json"),
    "TensorBoard": _tensorboard,
    "TerminateOnNaN": _terminate_on_nan,
}
