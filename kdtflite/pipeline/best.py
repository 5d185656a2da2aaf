"""The best epoch of a training, held in variables that a checkpoint saves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["BestEpoch", "use_averages"]


class BestEpoch(tf.Module):
    """Remembers the weights of the epoch with the highest validation accuracy, the first of equals.

    Args:
        weights: The variables to remember.
        patience: Epochs without improvement after which training should stop.
    """

    def __init__(self, weights: Sequence[tf.Variable], patience: int) -> None:
        super().__init__(name="best")
        self.patience = patience
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.accuracy = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self.kept = [tf.Variable(weight, trainable=False) for weight in weights]
        self._weights = list(weights)

    @property
    def number(self) -> int:
        """The best epoch, from 1; 0 before there is one."""
        return int(self.epoch.numpy())

    def update(self, epoch: int, accuracy: float) -> None:
        """Remembers the weights if epoch number `epoch`, from 1, is the best so far."""
        if accuracy > float(self.accuracy.numpy()):
            self.epoch.assign(epoch)
            self.accuracy.assign(accuracy)
            for kept, weight in zip(self.kept, self._weights, strict=True):
                kept.assign(weight)

    def should_stop(self, epoch: int) -> bool:
        """Whether too many epochs up to number `epoch` brought no improvement."""
        return epoch - self.number >= self.patience

    def restore(self) -> None:
        """Restores the weights of the best epoch."""
        for kept, weight in zip(self.kept, self._weights, strict=True):
            weight.assign(kept)


@contextlib.contextmanager
def use_averages(optimizer: Any, variables: Sequence[tf.Variable]) -> Iterator[None]:
    """Replaces variables by their moving averages while the block runs, if there are any."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    own = [variable.numpy() for variable in variables] if optimizer.use_ema else []
    optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        if own:
            for variable, value in zip(variables, own, strict=True):
                variable.assign(value)
