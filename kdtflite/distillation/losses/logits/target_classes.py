"""The class of each sample, by its label or by the teacher's decision."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.errors import ShapeMismatchError

__all__ = ["one_hot_decisions", "one_hot_labels"]


def one_hot_decisions(logits: Any) -> tf.Tensor:
    """Returns the most likely class, the first of several, as a one-hot vector, float64."""
    logits = tf.convert_to_tensor(logits)
    return tf.one_hot(tf.argmax(logits, axis=-1), tf.shape(logits)[-1], dtype=tf.float64)


def one_hot_labels(labels: Any, logits: Any) -> tf.Tensor:
    """Returns the labels' classes as one-hot vectors, bool, in the shape of the logits.

    Args:
        labels: Class indices in the logits' shape without the classes, with an axis of 1 in their
            place, or without an axis of 1 before them (one yes or no); or distributions over the
            classes, of which the most likely counts. An index that is not a class (such as -1)
            gives a row of False.
        logits: The logits they belong to, shape (batch, ..., classes).

    Raises:
        ShapeMismatchError: The labels have another shape.
    """
    labels, logits = tf.convert_to_tensor(labels), tf.convert_to_tensor(logits)
    classes = logits.shape[-1]
    if labels.shape.rank == logits.shape.rank and labels.shape[-1] == 1:
        labels = tf.squeeze(labels, axis=-1)
    elif labels.shape.rank == logits.shape.rank and labels.shape[-1] == classes:
        labels = tf.argmax(labels, axis=-1)
    elif labels.shape.rank == logits.shape.rank - 2 and logits.shape[-2] == 1:
        labels = labels[..., tf.newaxis]
    if not labels.shape.is_compatible_with(logits.shape[:-1]):
        raise ShapeMismatchError(
            "The labels do not give one class per row of logits. Expected class indices, shape "
            f"{tuple(logits.shape[:-1])}, or distributions, shape {tuple(logits.shape)}. "
            f"Received: labels of shape {tuple(labels.shape)}."
        )
    return tf.one_hot(tf.cast(labels, tf.int32), tf.shape(logits)[-1], True, False)
