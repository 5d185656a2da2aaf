"""How far a model's outputs are from those of the float model, with and without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import DataError

__all__ = [
    "OUTPUT_ERRORS",
    "compute_log_softmax",
    "compute_outputs",
    "divergence",
    "measure_accuracy",
    "split_labels",
    "squared_error",
]

Array = np.ndarray[Any, np.dtype[Any]]
_LEAST = 1e-30  # a probability of 0 has no logarithm


def compute_outputs(model: keras.Model, batches: Iterable[Any]) -> list[Array]:
    """Returns each output of a model for all samples, shape (samples, ...).

    The model is called. `predict` would run what it traced at its first call, whatever flags of
    its layers have changed since.
    """
    parts = [tf.nest.flatten(model(batch, training=False)) for batch in batches]
    return [np.concatenate(list(map(np.asarray, output))) for output in zip(*parts, strict=True)]


def split_labels(data: Any) -> tuple[Any, Array | None]:
    """Returns the samples and the class indices of a pair (x, y) or an object with both.

    Raises:
        DataError: The labels are not one whole number per sample.
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
            f"Expected one class index per sample as labels. Received: {labels.dtype} of shape "
            f"{labels.shape} for {sorted(samples)} samples."
        )
    return x, labels


def squared_error(wanted: list[Array], given: list[Array]) -> float:
    """Returns the mean squared difference as a share of the mean square of the float outputs.

    Args:
        wanted: The float model's outputs, shape (samples, ...) each.
        given: The other model's.

    Returns:
        The mean over the outputs. It is 0 where they are equal; 0.01 is a signal-to-noise ratio of
        20 dB.
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
        wanted: The float model's outputs, shape (..., classes) each. They are probabilities where
            all of them are non-negative and add up to 1, otherwise logits.
        given: The other model's, of the same kind.

    Returns:
        Nats per sample, the mean over the outputs.
    """
    means = []
    for one, other in zip(wanted, given, strict=True):
        one, other = one.astype(np.float64), other.astype(np.float64)
        if one.min() >= 0 and np.allclose(one.sum(axis=-1), 1, atol=1e-3):
            one, other = (np.log(np.maximum(x, _LEAST)) for x in (one, other))
        p, q = compute_log_softmax(one), compute_log_softmax(other)
        means.append(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))
    return float(np.mean(means))


def measure_accuracy(labels: Array, outputs: list[Array]) -> float:
    """Returns the share of samples whose class has the greatest value in the first output.

    An output of one value per sample means class 1 where it is above 0.5.
    """
    scores = outputs[0]
    classes = scores.argmax(axis=-1) if scores.shape[-1] > 1 else scores[..., 0] > 0.5
    return float(np.mean(classes == labels))


def compute_log_softmax(x: Array) -> Array:
    """Returns the log-probabilities of logits, or of log-probabilities, shape (..., classes)."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


OUTPUT_ERRORS: dict[str, Callable[[list[Array], list[Array]], float]] = {
    "kl": divergence,
    "mse": squared_error,
}
"""The measures of the difference between outputs, by name."""
