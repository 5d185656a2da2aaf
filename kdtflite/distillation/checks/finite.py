"""Stops a training whose loss or weights are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from kdtflite.errors import TrainingError
from kdtflite.models.finite import describe_first_non_finite
from kdtflite.progress import say

__all__ = ["StopUnlessFinite"]

_DATA = (
    "Look for NaN, infinity or huge values in the samples, labels and sample weights, and for a "
    "loss that overflows."
)
_LEARNING_RATE = (
    "The likely cause is a learning rate that is too high: lower it, or clip the gradients "
    "(clipnorm=1.0 of the optimizer). If it is not, look for NaN or infinity in the samples and "
    "labels."
)


class StopUnlessFinite(keras.callbacks.Callback):
    """Raises TrainingError as soon as the loss of a training is NaN or infinite.

    The error names the step, the learning rate, the first weight that is not finite, and the
    likely cause. Weights that are not finite before the first step are refused as well. A
    validation loss that is not finite is reported and does not end the training.

    Args:
        models: The models that are trained; by default the one that `fit` is called on.
    """

    # Keras would otherwise copy every metric to the host after every step.
    _supports_tf_logs = True

    def __init__(self, models: Sequence[keras.Model] | None = None) -> None:
        super().__init__()
        self.models = models
        self._last: tuple[int, int, Any] | None = None  # epoch, step (from 1) and mean loss
        self._epoch = 0
        self._steps = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuses weights that are not finite."""
        del logs
        self._last, self._steps = None, 0
        if found := self._describe_weights():
            raise TrainingError(
                f"Expected finite weights to train. Received: {found}, before the first step. "
                "Build or load the model again; a training that diverged may have left them."
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        del logs
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks the loss of the step before."""
        # That loss is there already: reading the newest would make the host wait for a GPU. The
        # logs hold the mean over the epoch, which stays NaN or infinite once it is.
        self._check()
        self._steps += 1
        self._last = (self._epoch + 1, batch + 1, (logs or {}).get("loss"))

    def on_test_begin(self, logs: Any = None) -> None:
        """Checks the loss of an epoch's last step before its validation."""
        del logs
        self._check()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks the loss of an epoch's last step, the weights and the validation loss."""
        self._check()
        # A ReLU turns NaN into 0: the loss may be finite over weights that are not.
        if found := self._describe_weights():
            raise TrainingError(
                f"Expected finite weights after epoch {epoch + 1}{self._describe_rate()}. "
                f"Received: {found}. {_LEARNING_RATE}"
            )
        value = (logs or {}).get("val_loss")
        if value is not None and not math.isfinite(float(value)):
            say(
                f"The validation loss after epoch {epoch + 1} is {float(value)}. All weights are "
                "finite: look for NaN, infinity or huge values in the validation data."
            )

    def _check(self) -> None:
        last, self._last = self._last, None
        if last is None or last[2] is None or math.isfinite(value := float(last[2])):
            return
        epoch, step, _ = last
        found = self._describe_weights()
        if self._steps <= 1:  # checked at the second step: no update came before
            cause = f"No update came before it. {_DATA}"
        else:
            cause = f"All weights are finite. {_DATA}" if found is None else _LEARNING_RATE
        raise TrainingError(
            f"Expected a finite loss. Received: {value} at step {step} of epoch {epoch}"
            f"{self._describe_rate()}. {cause}"
            f"{f' The first weight that is not finite: {found}.' if found else ''}"
        )

    def _describe_rate(self) -> str:
        optimizer: Any = self.model.optimizer
        rate = getattr(optimizer, "learning_rate", None)
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):  # a legacy optimizer
            rate = rate(optimizer.iterations)
        return "" if rate is None else f", at a learning rate of {float(rate):.3g}"

    def _describe_weights(self) -> str | None:
        models = [self.model] if self.models is None else self.models
        return next(filter(None, map(describe_first_non_finite, models)), None)
