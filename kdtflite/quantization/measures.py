"""How far a model's outputs are from those of the float model, with labels and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import DataError

__all__ = ["MEASURES", "accuracy_of", "divergence", "outputs_of", "split_labels", "squared_error"]

Array = np.ndarray[Any, np.dtype[Any]]
_LEAST = 1e-30  # a probability of 0 has no logarithm


def outputs_of(model: keras.Model, batches: Iterable[Any]) -> list[Array]:
    """Returns each output of a model for all samples, shape (samples, ...), layers as they are.

    Unlike `predict`, which runs what was traced at its first call, it minds flags of layers that
    were changed since.
    """
    parts = [tf.nest.flatten(model(batch, training=False)) for batch in batches]
    return [np.concatenate(list(map(np.asarray, output))) for output in zip(*parts, strict=True)]


def split_labels(data: Any) -> tuple[Any, Array | None]:
    """Returns the samples and the class indices of a pair (x, y) or an object with both.

    Raises:
        DataError: The labels are not one whole number a sample.
    """
    if hasattr(data, "x") and hasattr(data, "y"):
        x, y = data.x, data.y
    elif isinstance(data, tuple) and len(data) == 2:
        x, y = data
    else:
        return data, None
    labels = np.asarray(y)
    samples = {len(value) for value in (x.values() if isinstance(x, dict) else (x,))}
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or samples != {len(labels)}:
        raise DataError(
            f"Expected one class index a sample as labels. Received: {labels.dtype} of shape "
            f"{labels.shape} for {sorted(samples)} samples."
        )
    return x, labels


def squared_error(wanted: list[Array], given: list[Array]) -> float:
    """Returns the mean squared difference, as a share of the mean square of what is wanted.

    Args:
        wanted: The float model's outputs, shape (samples, ...) each.
        given: The other model's.

    Returns:
        The mean over the outputs, 0 where they are equal; 0.01 is a signal-to-noise ratio of 20 dB.
    """
    shares = []
    for one, other in zip(wanted, given, strict=True):
        one, other = one.astype(np.float64), other.astype(np.float64)
        power = np.mean(one**2)
        shares.append(np.mean((one - other) ** 2) / (power if power > 0 else 1.0))
    return float(np.mean(shares))


def divergence(wanted: list[Array], given: list[Array]) -> float:
    """Returns the mean Kullback-Leibler divergence KL(wanted || given) of the class probabilities.

    Args:
        wanted: The float model's outputs, shape (..., classes) each: probabilities where all of
            them are non-negative and add up to 1, else logits.
        given: The other model's, of the same kind.

    Returns:
        Nats a sample, the mean over the outputs.
    """
    means = []
    for one, other in zip(wanted, given, strict=True):
        one, other = one.astype(np.float64), other.astype(np.float64)
        if one.min() >= 0 and np.allclose(one.sum(axis=-1), 1, atol=1e-3):
            one, other = (np.log(np.maximum(x, _LEAST)) for x in (one, other))
        p, q = _log_softmax(one), _log_softmax(other)
        means.append(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))
    return float(np.mean(means))


def accuracy_of(labels: Array, outputs: list[Array]) -> float:
    """Returns the share of samples whose class has the greatest value in the first output.

    An output of one value a sample says class 1 where it is above 0.5.
    """
    scores = outputs[0]
    classes = scores.argmax(axis=-1) if scores.shape[-1] > 1 else scores[..., 0] > 0.5
    return float(np.mean(classes == labels))


MEASURES: dict[str, Callable[[list[Array], list[Array]], float]] = {
    "kl": divergence,
    "mse": squared_error,
}
"""The measures of a difference of outputs by name."""


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
