"""Converts optimizers, losses and metrics of Keras 3 to tf_keras."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import tf_keras as keras

from kdtflite import progress
from kdtflite.errors import ConfigurationError
from kdtflite.models.keras3.configs import is_built_in, list_arguments
from kdtflite.models.keras3.conversion import is_from_keras3
from kdtflite.models.keras_internals import get_function_arguments

__all__ = ["to_tf_keras_loss", "to_tf_keras_metric", "to_tf_keras_optimizer"]

# The values, besides None and False, with which an argument that tf_keras lacks has no effect.
_OFF: dict[str, Any] = {
    "axis": -1,
    "gradient_accumulation_steps": 1,
    "from_sorted_ids": False,
    "loss_scale_factor": 1.0,
}


def to_tf_keras_optimizer(obj: Any) -> Any:
    """Converts a Keras 3 optimizer to tf_keras, with the same hyperparameters.

    Strings, None and tf_keras optimizers pass through. The state of a used optimizer (momenta,
    iterations) is not copied; a line says so.

    Args:
        obj: Anything that `compile(optimizer=)` takes.

    Raises:
        ConfigurationError: tf_keras has no such optimizer, schedule or argument.

    Example:
        >>> import keras
        >>> import kdtflite
        >>> adam = kdtflite.models.to_tf_keras_optimizer(keras.optimizers.Adam(0.01))
        >>> type(adam).__module__.split(".")[0], float(adam.learning_rate.numpy()) < 0.011
        ('tf_keras', True)
    """
    if obj is None or isinstance(obj, str | keras.optimizers.Optimizer):
        return obj
    if isinstance(obj, keras.optimizers.legacy.Optimizer):
        return obj
    if not _is_instance(obj, "optimizers", "Optimizer"):
        _refuse_type("an optimizer", obj, 'Pass a name such as "adam", or a Keras optimizer.')
    if is_built_in(obj) and type(obj).__name__ == "LossScaleOptimizer":
        inner = obj.inner_optimizer
        progress.say(
            f"The Keras 3 LossScaleOptimizer is replaced by its inner optimizer "
            f"{type(inner).__name__}: training here is in float32 and needs no loss scaling."
        )
        return to_tf_keras_optimizer(inner)
    target = _find_counterpart(obj, keras.optimizers, "optimizer")
    if target is keras.optimizers.Nadam:
        # Tracing a step freezes its Python counter, so from the second step on the product of
        # momenta advances once per variable.
        _refuse(
            obj,
            "tf_keras' Nadam makes other steps, with a bias correction that is wrong in a graph.",
            "Use Adam or AdamW, or pass tf_keras.optimizers.Nadam itself if you want that one.",
        )
    config = obj.get_config()
    config["learning_rate"] = _convert_learning_rate(getattr(obj, "_learning_rate", None), config)
    arguments = _select_arguments(obj, target, config, "optimizer")
    if getattr(obj, "_exclude_from_weight_decay", None):
        _refuse(
            obj,
            "it leaves variables out of weight decay by object (var_list).",
            "Use exclude_from_weight_decay(var_names=[...]), or a tf_keras optimizer.",
        )
    converted = target(**arguments)
    pattern = getattr(obj, "_exclude_from_weight_decay_pattern", None)
    if pattern is not None:
        converted.exclude_from_weight_decay(var_names=[pattern.pattern])
    if config.get("use_ema"):
        progress.say(
            f"{type(obj).__name__}(use_ema=True): tf_keras starts the moving average at the "
            "initial weights, Keras 3 at those after the first step."
        )
    if int(np.asarray(obj.iterations)) > 0:
        progress.say(
            f"The Keras 3 optimizer {obj.name!r} ({type(obj).__name__}) has already made "
            f"{int(np.asarray(obj.iterations))} steps; it starts afresh here, without its momenta."
        )
    return converted


def to_tf_keras_loss(obj: Any) -> Any:
    """Converts a Keras 3 loss to tf_keras, with the same arguments.

    Strings, None, tf_keras losses and plain functions pass through; lists and dicts are mapped
    element by element; a loss function of Keras 3 becomes tf_keras' of the same name.

    Args:
        obj: Anything that `compile(loss=)` takes.

    Raises:
        ConfigurationError: tf_keras has no such loss or argument, or the loss is the user's own
            subclass of keras.losses.Loss.
    """
    return _map(obj, lambda loss: _convert(loss, "loss", "losses", keras.metrics))


def to_tf_keras_metric(obj: Any) -> Any:
    """Converts a Keras 3 metric to tf_keras, with the same arguments and a fresh state.

    Strings, None, tf_keras metrics and plain functions pass through; lists and dicts are mapped
    element by element; a metric function of Keras 3 becomes tf_keras' of the same name.

    Args:
        obj: Anything that `compile(metrics=)` takes.

    Raises:
        ConfigurationError: tf_keras has no such metric or argument, or the metric is the user's own
            subclass of keras.metrics.Metric.
    """
    return _map(obj, lambda metric: _convert(metric, "metric", "metrics", keras.losses))


def _map(obj: Any, convert: Callable[[Any], Any]) -> Any:
    if isinstance(obj, dict):
        return {key: _map(value, convert) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return type(obj)(_map(value, convert) for value in obj)
    return convert(obj)


def _convert(obj: Any, kind: str, package: str, other: Any) -> Any:
    """Converts a "loss" or "metric"; a function may also come from the `other` namespace."""
    namespace, base = getattr(keras, package), kind.capitalize()
    if obj is None or isinstance(obj, (str, getattr(namespace, base))):
        return obj
    if not _is_instance(obj, package, base):
        return _convert_function(obj, (namespace, other), kind)
    target = _find_counterpart(obj, namespace, kind)
    # get_config omits some arguments (Huber's delta); the wrapped function has them all.
    config = {**obj.get_config(), **get_function_arguments(obj)}
    if kind == "loss":
        config["reduction"] = _convert_reduction(obj, config["reduction"])
    return target(**_select_arguments(obj, target, config, kind))


def _convert_function(obj: Any, namespaces: tuple[Any, ...], kind: str) -> Any:
    if not callable(obj) or isinstance(obj, type):
        _refuse_type(f"a {kind}", obj, f"Pass a name, a function, or a Keras {kind}.")
    if not str(getattr(obj, "__module__", "")).startswith("keras."):
        return obj
    for namespace in namespaces:
        found = getattr(namespace, obj.__name__, None)
        if found is not None:
            return found
    raise ConfigurationError(
        f"tf_keras has no {kind} function like Keras 3's {obj.__name__}. Write it with TensorFlow "
        f"operations, or choose a {kind} that tf_keras has."
    )


def _is_instance(obj: Any, package: str, base: str) -> bool:
    """Says whether `obj` is an instance of Keras 3's `base` class, without importing Keras 3."""
    return is_from_keras3(obj) and any(
        kind.__name__.endswith(base) and kind.__module__.startswith(f"keras.src.{package}")
        for kind in type(obj).__mro__
    )


def _find_counterpart(obj: Any, namespace: Any, kind: str) -> type:
    """Returns tf_keras' class of the same name, or refuses."""
    name = type(obj).__name__
    if not is_built_in(obj):
        package = namespace.__name__.rsplit(".", 1)[-1]
        _refuse(
            obj,
            f"it is your own subclass of a Keras 3 {kind}, whose code runs in Keras 3 only.",
            f"Subclass tf_keras' {kind} class instead (`import tf_keras as keras`, "
            f"keras.{package}).",
        )
    target = getattr(namespace, name, None)
    if target is None or name.endswith("Wrapper"):
        _refuse(
            obj,
            f"tf_keras has no such {kind}.",
            f"Choose a {kind} that tf_keras has, or pass a plain function of TensorFlow operations."
            if kind != "optimizer"
            else "Choose one that tf_keras has: SGD, Adam, AdamW, RMSprop, Lion ...",
        )
    return target


def _select_arguments(obj: Any, target: type, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Returns the arguments that `target` takes; refuses others by name."""
    accepted = list_arguments(target)
    kept = {}
    for key, value in config.items():
        if key == "dtype":
            # A dtype policy of Keras 3. Losses and metrics here are in float32, MeanIoU aside.
            continue
        if key in accepted:
            kept[key] = value
        elif not (value is None or value is False or _OFF.get(key, ...) == value):
            _refuse(
                obj,
                f"its argument {key}={value!r} has no equal in tf_keras.",
                f"Leave `{key}` out, or pass a tf_keras {kind}.",
            )
    return kept


def _convert_reduction(obj: Any, reduction: Any) -> str:
    if reduction is None:
        return "none"
    if reduction == "mean":  # the same arithmetic in Keras 3
        return "sum_over_batch_size"
    if reduction not in ("none", "sum", "sum_over_batch_size"):
        _refuse(
            obj,
            f"its reduction={reduction!r} has no equal in tf_keras.",
            "Use 'sum_over_batch_size', 'sum' or None.",
        )
    return str(reduction)


def _convert_learning_rate(live: Any, config: dict[str, Any]) -> Any:
    """Returns the learning rate: a float, or tf_keras' schedule of the same name."""
    value = config["learning_rate"]
    if not isinstance(value, dict):
        return float(value)
    if not _is_instance(live, "optimizers.schedules", "LearningRateSchedule"):
        _refuse(
            live,
            "a function as learning rate cannot be carried over.",
            "Pass a number or a schedule of keras.optimizers.schedules.",
        )
    target = _find_counterpart(live, keras.optimizers.schedules, "learning rate schedule")
    return target(**_select_arguments(live, target, live.get_config(), "schedule"))


def _refuse(obj: Any, why: str, advice: str) -> NoReturn:
    kind = type(obj).__name__ if not inspect.isfunction(obj) else obj.__name__
    raise ConfigurationError(
        f"The Keras 3 object {kind} cannot be carried over to tf_keras: {why} {advice}"
    )


def _refuse_type(expected: str, obj: Any, advice: str) -> NoReturn:
    kind = f"the class {obj.__name__}" if isinstance(obj, type) else type(obj).__name__
    raise ConfigurationError(f"Expected {expected}. Received: {kind}. {advice}")
