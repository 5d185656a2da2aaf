"""Weights and temperatures that change over the epochs."""

from __future__ import annotations

import abc
import math
from typing import Any

import tensorflow as tf

from kdtflite.arguments import ChecksArguments
from kdtflite.errors import ConfigurationError

__all__ = ["Constant", "Cosine", "GradualSoftLossReduction", "Linear", "Schedule", "read_value"]


class Schedule(ChecksArguments, abc.ABC):
    """A number that changes during the training.

    Pass it wherever a loss or the Distiller takes a weight or a temperature. `fit` sets it at the
    start of every epoch; outside a training it has its first value.
    """

    def __init__(self) -> None:
        self._variable: tf.Variable | None = None

    @abc.abstractmethod
    def at(self, epoch: int, epochs: int) -> float:
        """Returns the value in `epoch`, from 0, of a training of `epochs`."""

    @property
    def value(self) -> tf.Variable:
        """The current value, a float32 scalar that compiled steps read at every run."""
        if self._variable is None:
            with tf.init_scope():
                self._variable = tf.Variable(
                    self.at(0, 1),
                    trainable=False,
                    dtype=tf.float32,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
        return self._variable

    def begin(self, epoch: int, epochs: int) -> None:
        """Sets the value for `epoch`."""
        self.value.assign(self.at(epoch, epochs))


class Constant(Schedule):
    """The same value throughout.

    Args:
        value: That value.
    """

    def __init__(self, value: float) -> None:
        super().__init__()
        self.constant = _require_finite(value, "value")

    def at(self, epoch: int, epochs: int) -> float:  # noqa: D102
        del epoch, epochs
        return self.constant


class _Between(Schedule):
    def __init__(self, start: float, end: float) -> None:
        super().__init__()
        self.start = _require_finite(start, "start")
        self.end = _require_finite(end, "end")

    def at(self, epoch: int, epochs: int) -> float:
        # The last epoch has the end value, a single one the first.
        progress = min(max(epoch / (epochs - 1), 0.0), 1.0) if epochs > 1 else 0.0
        return self.start + (self.end - self.start) * self._ease(progress)

    @abc.abstractmethod
    def _ease(self, progress: float) -> float:
        """Returns the covered fraction of the way, from 0 to 1, at `progress` from 0 to 1."""


class Linear(_Between):
    """From `start` in the first epoch to `end` in the last, in equal steps.

    Args:
        start: Value in the first epoch.
        end: Value in the last epoch.
    """

    def _ease(self, progress: float) -> float:
        return progress


class Cosine(_Between):
    """From `start` in the first epoch to `end` in the last along half a cosine.

    Args:
        start: Value in the first epoch.
        end: Value in the last epoch.
    """

    def _ease(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2


class GradualSoftLossReduction(Schedule):
    """Gradual soft-loss reduction (Shin, Boo & Sung, arXiv 1909.01688).

    The weight of the soft loss falls linearly from `start` to 0 and stays there, so that training
    ends on the hard labels alone: a small or quantized student first follows the teacher and then
    settles on the task.

    Args:
        start: Weight of the soft loss in the first epoch.
        until: Fraction of the training, above 0 and at most 1, after which the weight is 0.
    """

    def __init__(self, start: float = 1.0, until: float = 1.0) -> None:
        super().__init__()
        self.start = _require_finite(start, "start")
        if not 0 < until <= 1:
            raise ConfigurationError(f"Expected until above 0 and at most 1. Received: {until}.")
        self.until = float(until)

    def at(self, epoch: int, epochs: int) -> float:  # noqa: D102
        last = max(self.until * (epochs - 1), 1.0)
        return self.start * max(0.0, 1.0 - epoch / last)


def read_value(value: float | Schedule, dtype: Any = tf.float32) -> Any:
    """Returns a number unchanged, or a schedule's current value as a tensor of `dtype`."""
    return tf.cast(value.value, dtype) if isinstance(value, Schedule) else value


def _require_finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise ConfigurationError(f"Expected a finite {name}. Received: {name}={value}.")
    return float(value)
