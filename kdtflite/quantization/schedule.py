"""When, in the course of training, rounding begins and statistics stop moving."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from kdtflite.errors import ConfigurationError
from kdtflite.quantization.layers import (
    FakeQuantize,
    FakeQuantized,
    FoldedBatchNormalization,
)

__all__ = ["QuantizationSchedule"]


class QuantizationSchedule(keras.callbacks.Callback):
    """A callback for `fit` of a quantization-aware model, or of the Distiller that trains it.

    Epochs count from 0, as Keras counts them, so that a training that is resumed with
    `initial_epoch` goes on as it would have.

    Args:
        start_rounding: The first epoch with fake quantization; before it the model trains in
            float, its ranges following.
        freeze_batch_norm: From this epoch on batch normalization uses its moving statistics in
            training too, as the file will (Krishnamoorthi, arXiv 1806.08342); None: never.
        freeze_ranges: From this epoch on activation ranges stay; None: never.

    Raises:
        ConfigurationError: An epoch below 0.

    Example:
        student.fit(x, y, epochs=10, callbacks=[QuantizationSchedule(freeze_batch_norm=7)])
    """

    def __init__(
        self,
        *,
        start_rounding: int = 0,
        freeze_batch_norm: int | None = None,
        freeze_ranges: int | None = None,
    ) -> None:
        super().__init__()
        for name, epoch in (
            ("start_rounding", start_rounding),
            ("freeze_batch_norm", freeze_batch_norm),
            ("freeze_ranges", freeze_ranges),
        ):
            if epoch is not None and epoch < 0:
                raise ConfigurationError(f"Expected {name} from 0 up, or None. Received: {epoch}.")
        self.start_rounding = start_rounding
        self.freeze_batch_norm = freeze_batch_norm
        self.freeze_ranges = freeze_ranges
        self._state: tuple[bool, bool, bool] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets what holds in this epoch; the training step is traced anew where that changes."""
        del logs
        state = (
            epoch < self.start_rounding,
            self.freeze_batch_norm is not None and epoch >= self.freeze_batch_norm,
            self.freeze_ranges is not None and epoch >= self.freeze_ranges,
        )
        if state != (self._state or (False, False, False)):
            self._set(*state)
            self.model.make_train_function(force=True)
        self._state = state

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Does nothing; validation rounds as training does."""

    def on_train_end(self, logs: Any = None) -> None:
        """Lets the model round, follow and normalize as before."""
        del logs
        if self._state not in (None, (False, False, False)):
            self._set(False, False, False)
            self.model.make_train_function(force=True)
        self._state = None

    def _set(self, passes: bool, frozen: bool, still: bool) -> None:
        model: Any = getattr(self.model, "student", self.model)
        for layer in model.layers:
            if isinstance(layer, FoldedBatchNormalization):
                layer.frozen_statistics = frozen
            if isinstance(layer, FakeQuantize | FakeQuantized):
                rounds = [layer.quantizer, *getattr(layer, "weight_quantizers", {}).values()]
                for quantizer in rounds:
                    if quantizer is not None:
                        quantizer.passes, quantizer.follows = passes, not still
