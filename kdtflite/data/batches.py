"""Training batches that depend on nothing but the seed and the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.errors import DataError

if TYPE_CHECKING:
    from kdtflite.data.splits import Split

__all__ = ["batches_of", "steps_an_epoch", "training_batches"]


def steps_an_epoch(split: Split, batch_size: int) -> int:
    """Returns how many full batches an epoch has.

    Raises:
        DataError: The split holds less than one batch.
    """
    steps = len(split.x) // batch_size
    if steps == 0:
        raise DataError(
            f"Expected at least batch_size={batch_size} training samples. "
            f"Received: {len(split.x)}. Choose a smaller batch size."
        )
    return steps


def training_batches(
    split: Split,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    first_epoch: int = 0,
    augmentation: Augmentation | None = None,
) -> tf.data.Dataset:
    """Returns the batches of epochs `first_epoch` to `epochs`, one epoch after the other.

    Order and augmentation of an epoch are a function of (seed, epoch) alone, so that training
    resumed at epoch 7 sees exactly what it would have seen had it never stopped. Use it with
    `fit(steps_per_epoch=steps_an_epoch(...), initial_epoch=first_epoch, epochs=epochs)`.

    Args:
        split: Training samples.
        batch_size: Samples a batch; what does not fill a batch waits for the next shuffle.
        epochs: The epoch to stop before.
        seed: Seed of the order and of the augmentation.
        first_epoch: The epoch to begin with.
        augmentation: Random geometry, drawn anew each epoch.
    """
    steps_an_epoch(split, batch_size)  # refuses less than one
    with tf.device("CPU"):  # the whole set stays in host memory, once
        x, y = tf.constant(split.x), tf.constant(split.y)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(split.x)), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        batches = batches_of(order, batch_size, drop_remainder=True)
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


def batches_of(rows: tf.Tensor, batch_size: int, *, drop_remainder: bool) -> tf.data.Dataset:
    """Returns `rows`, shape (samples,), in batches: cut at once, not gathered one by one."""
    whole = tf.size(rows) // batch_size * batch_size
    batches = tf.data.Dataset.from_tensor_slices(tf.reshape(rows[:whole], [-1, batch_size]))
    if drop_remainder:
        return batches
    rest = tf.data.Dataset.from_tensors(rows[whole:]).filter(lambda rows: tf.size(rows) > 0)
    return batches.concatenate(rest)
