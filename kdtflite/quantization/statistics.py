"""Whether the moving statistics of batch normalization are those of the data."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.models.keras_internals import replace_attributes
from kdtflite.models.layer_names import strip_prefix
from kdtflite.quantization.layers import FoldedBatchNormalization
from kdtflite.quantization.ranges import suspend_rounding

__all__ = ["find_unsettled", "use_batch_statistics"]

_SAMPLES = 8  # a smaller batch has no statistics to speak of
_FACTOR = 10.0  # of the variance
_DEVIATIONS = 3.0  # of the mean


def use_batch_statistics(
    model: keras.Model, observe: Any = lambda layer, mean, variance: None
) -> contextlib.AbstractContextManager[None]:
    """Makes batch normalization use the batch's statistics while the block runs, as in training.

    No moving statistic moves, and dropout stays off.

    Args:
        model: A quantization-aware model. Call it directly.
        observe: Called with each layer and the mean and variance of its batch.
    """
    return replace_attributes(_list_trained(model), observe=observe)


def find_unsettled(model: keras.Model, batch: Any) -> list[str]:
    """Returns the batch normalizations whose moving statistics are far from those of a batch.

    That is so in a model that was trained for a few steps or not at all: it computes one thing in
    training, and another in inference. A layer counts where for most channels the variance differs
    by a factor of 10 or the mean by three standard deviations.

    Args:
        model: A quantization-aware model.
        batch: Inputs as the model takes them, shape (batch, ...).

    Returns:
        The names of these layers where they are most of all that train, else none: one layer alone
        may differ because a batch is small.
    """
    layers = _list_trained(model)
    found: list[str] = []

    def observe(layer: Any, mean: Any, variance: Any) -> None:
        moving = layer.moving_variance.numpy() + layer.epsilon
        spread = np.abs(np.log(moving / (variance.numpy() + layer.epsilon)))
        shift = np.abs(mean.numpy() - layer.moving_mean.numpy()) / np.sqrt(moving)
        if max(np.median(spread) / np.log(_FACTOR), np.median(shift) / _DEVIATIONS) > 1:
            found.append(strip_prefix(layer.name))

    first = batch[next(iter(batch))] if isinstance(batch, dict) else batch
    first = first[0] if isinstance(first, list | tuple) else first
    if not layers or len(first) < _SAMPLES:
        return []
    with suspend_rounding(model), use_batch_statistics(model, observe):
        model(batch, training=False)
    return found if len(found) > len(layers) / 2 else []


def _list_trained(model: keras.Model) -> list[FoldedBatchNormalization]:
    return [
        layer
        for layer in model.layers
        if isinstance(layer, FoldedBatchNormalization)
        and layer.trainable
        and list(layer.axis) == [layer.input_spec.ndim - 1]
    ]
