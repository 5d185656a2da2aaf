"""Training batches that depend only on the seed and the epoch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tensorflow as tf

from kdtflite.arguments import check_arguments
from kdtflite.data.augment import Augmentation
from kdtflite.errors import DataError

__all__ = ["Samples", "batch_rows", "steps_per_epoch", "training_batches"]


class Samples(Protocol):
    """Samples and a label for each, such as a Split."""

    @property
    def x(self) -> np.ndarray:
        """The samples, shape (samples, ...)."""

    @property
    def y(self) -> np.ndarray:
        """Their labels, shape (samples,)."""


@check_arguments
def steps_per_epoch(split: Samples, batch_size: int, *, passes: int = 1) -> int:
    """Returns the number of full batches in an epoch.

    Args:
        split: Training samples.
        batch_size: Samples per batch.
        passes: Passes over the samples that make an epoch.

    Raises:
        DataError: The split holds less than one batch.
    """
    steps = len(split.x) * passes // batch_size
    if steps == 0:
        raise DataError(
            f"Expected at least batch_size={batch_size} training samples. "
            f"Received: {len(split.x)}. Choose a smaller batch size."
        )
    return steps


@check_arguments
def training_batches(
    split: Samples,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    first_epoch: int = 0,
    augmentation: Augmentation | None = None,
    passes: int = 1,
) -> tf.data.Dataset:
    """Returns the batches of epochs `first_epoch` to `epochs`, one epoch after the other.

    The order and the augmentation of an epoch are a function of (seed, epoch) alone, so that a
    training resumed at epoch 7 sees exactly what it would have seen without the break. Call
    `fit(steps_per_epoch=steps_per_epoch(...), initial_epoch=first_epoch, epochs=epochs)`.

    Args:
        split: Training samples.
        batch_size: Samples per batch; those that do not fill a batch wait for the next shuffle.
        epochs: The number of the epoch to stop before.
        seed: Seed of the order and of the augmentation.
        first_epoch: The number of the epoch to begin with.
        augmentation: Random geometry, new in each epoch.
        passes: Passes over the samples that make an epoch, all in one shuffled order.

    Raises:
        DataError: The split holds less than one batch.

    Example:
        >>> import kdtflite
        >>> train = kdtflite.data.load_dataset("digits").train
        >>> batches = kdtflite.data.training_batches(train, batch_size=100, epochs=1, seed=0)
        >>> len(list(batches)) == kdtflite.data.steps_per_epoch(train, 100)
        True
    """
    steps_per_epoch(split, batch_size, passes=passes)  # refuses a split of less than one batch
    with tf.device("CPU"):  # the whole set stays in host memory, once
        x, y = tf.constant(split.x), tf.constant(split.y)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(split.x) * passes), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        batches = batch_rows(order % len(split.x), batch_size, drop_remainder=True)
        return batches.enumerate().map(lambda step, rows: (epoch, step, rows))

    def load(epoch: tf.Tensor, step: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.gather(x, rows)
        if augmentation is not None:
            images = augmentation(images, tf.stack([epoch + seed * 1_000_003, step]))
        return images, tf.gather(y, rows)

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(epoch_batches)
        .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def batch_rows(rows: tf.Tensor, batch_size: int, *, drop_remainder: bool) -> tf.data.Dataset:
    """Cuts `rows`, shape (samples,), into batches at once, which is faster than one by one."""
    whole = tf.size(rows) // batch_size * batch_size
    batches = tf.data.Dataset.from_tensor_slices(tf.reshape(rows[:whole], [-1, batch_size]))
    if drop_remainder:
        return batches
    rest = tf.data.Dataset.from_tensors(rows[whole:]).filter(lambda rows: tf.size(rows) > 0)
    return batches.concatenate(rest)
