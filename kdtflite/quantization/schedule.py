"""When rounding starts in the course of training, and statistics stop moving."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError
from kdtflite.quantization.layers import (
    FakeQuantize,
    FakeQuantized,
    FoldedBatchNormalization,
)

__all__ = ["QuantizationSchedule"]


class QuantizationSchedule(keras.callbacks.Callback):
    """A callback for `fit` of a quantization-aware model, or of the Distiller that trains it.

    Epochs count from 0, as in Keras, so that training resumed with `initial_epoch` continues
    unchanged.

    Args:
        start_rounding: The first epoch with fake quantization; before it the model trains in
            float, while its ranges follow the batches.
        freeze_batch_norm: The first epoch in which batch normalization uses its moving statistics
            in training too, as the file will (Krishnamoorthi, arXiv 1806.08342); None for never.
        freeze_ranges: The first epoch in which activation ranges stay; None for never.

    Raises:
        ConfigurationError: An epoch below 0.

    Example:
        >>> import kdtflite
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> x = np.linspace(-1, 1, 64, dtype="float32").reshape(32, 2)
        >>> student = kdtflite.quantize_aware(model, x)
        >>> student.compile("sgd", "mse")
        >>> schedule = kdtflite.quantization.QuantizationSchedule(start_rounding=1)
        >>> history = student.fit(x, x[:, :1], epochs=2, callbacks=[schedule], verbose=0)
    """

    @check_arguments
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
        """Applies the state of this epoch; when it changes, the training step is traced anew."""
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
        """Restores rounding, moving ranges and moving statistics."""
        del logs
        if self._state not in (None, (False, False, False)):
            self._set(False, False, False)
            self.model.make_train_function(force=True)
        self._state = None

    def _set(self, passes: bool, frozen: bool, still: bool) -> None:
        # A distiller lists its students; any other model is trained itself.
        has_students = hasattr(type(self.model), "students")
        models = self.model.students if has_students else [self.model]
        for layer in (layer for model in models for layer in model.layers):
            if isinstance(layer, FoldedBatchNormalization):
                layer.frozen_statistics = frozen
            if isinstance(layer, FakeQuantize | FakeQuantized):
                weights = getattr(layer, "weight_quantizers", {}).values()
                for quantizer in (layer.quantizer, *weights):
                    if quantizer is not None:
                        quantizer.passes, quantizer.follows = passes, not still
