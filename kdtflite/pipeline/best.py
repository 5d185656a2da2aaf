"""The best epoch of a training, remembered in variables that a checkpoint keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["Best", "averaged"]


class Best(tf.Module):
    """Remembers the weights of the epoch with the highest validation accuracy, the first of equals.

    Args:
        weights: What is remembered.
        patience: Epochs without a better one after which there is no use in going on.
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

    def see(self, epoch: int, accuracy: float) -> None:
        """Remembers the weights if epoch number `epoch`, from 1, is the best so far."""
        if accuracy > float(self.accuracy.numpy()):
            self.epoch.assign(epoch)
            self.accuracy.assign(accuracy)
            for kept, weight in zip(self.kept, self._weights, strict=True):
                kept.assign(weight)

    def given_up(self, epoch: int) -> bool:
        """Whether epoch number `epoch` was one without a better one too many."""
        return epoch - self.number >= self.patience

    def restore(self) -> None:
        """Gives the weights the values of the best epoch."""
        for kept, weight in zip(self.kept, self._weights, strict=True):
            weight.assign(kept)


@contextlib.contextmanager
def averaged(optimizer: Any, variables: Sequence[tf.Variable]) -> Iterator[None]:
    """Lends variables their moving averages, if the optimizer keeps such."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    own = [variable.numpy() for variable in variables] if optimizer.use_ema else []
    optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        if own:
            for variable, value in zip(variables, own, strict=True):
                variable.assign(value)
