"""Training batches with a teacher's stored outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.batches import batches_of
from kdtflite.distillation.step import Taught
from kdtflite.distillation.teachers.cache.data import (
    ArrayData,
    StreamData,
    given,
    row_fingerprints,
)
from kdtflite.distillation.teachers.cache.tables import Table
from kdtflite.distillation.teachers.cache.views import Views

__all__ = ["Order", "Stored", "array_batches", "stream_batches"]


@dataclass(frozen=True)
class Stored:
    """The teacher's outputs; those of sample i in view v are in row v * samples + i.

    Attributes:
        logits: Its logits.
        features: Outputs of its layers by path.
    """

    logits: Table
    features: Mapping[str, Table]

    def taught(self, inputs: Any, at: tf.Tensor) -> Taught:
        """Returns `inputs` with the outputs in the rows `at`."""
        features = {path: table(at) for path, table in self.features.items()}
        return Taught(inputs, self.logits(at), features)


@dataclass(frozen=True)
class Order:
    """In which order the samples of an epoch come.

    Attributes:
        batch_size: Samples a batch.
        first_epoch: The epoch to begin with.
        epochs: The epoch to stop before.
        seed: Of the order.
        shuffle: Whether they are shuffled.
        drop_remainder: Whether what does not fill a batch is left out.
        buffer: Samples of a tf.data.Dataset that are shuffled at a time.
    """

    batch_size: int
    first_epoch: int
    epochs: int
    seed: int
    shuffle: bool
    drop_remainder: bool
    buffer: int

    def steps(self, samples: int) -> int:
        """Returns how many batches an epoch of `samples` has."""
        rounded = 0 if self.drop_remainder else self.batch_size - 1
        return (samples + rounded) // self.batch_size


def array_batches(
    data: ArrayData, samples: int, stored: Stored, views: Views, order: Order
) -> tf.data.Dataset:
    """Returns batches (Taught, y, sample_weight) of arrays, epoch after epoch.

    The order is that of `kdtflite.data.training_batches` for the same seed.
    """
    x = tf.nest.map_structure(_table, data.x)
    y = None if data.y is None else tf.nest.map_structure(_table, data.y)
    weight = None if data.sample_weight is None else _table(data.sample_weight)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.range(samples, dtype=tf.int64)
        if order.shuffle:
            seed = tf.stack([tf.constant(order.seed, tf.int64), epoch])
            rows = tf.random.experimental.stateless_shuffle(rows, seed)
        return batches_of(rows, order.batch_size, drop_remainder=order.drop_remainder).map(
            lambda rows: (epoch, rows)
        )

    def load(epoch: tf.Tensor, rows: tf.Tensor) -> tuple[Any, ...]:
        view = epoch % views.views
        inputs = views(_gathered(x, rows), rows, view)
        labels = () if y is None else (_gathered(y, rows),)
        weights = () if weight is None else (weight(rows),)
        return (stored.taught(inputs, view * samples + rows), *labels, *weights)

    return _ready(
        _epochs(order).flat_map(epoch_batches),
        load,
        order.steps(samples) * (order.epochs - order.first_epoch),
    )


def stream_batches(
    data: StreamData, samples: int, stored: Stored, marks: Table, views: Views, order: Order
) -> tf.data.Dataset:
    """Returns batches (Taught, y, sample_weight) of a tf.data.Dataset, epoch after epoch.

    Every sample is compared with the one that the teacher saw: a step fails with a sentence where
    it is another one.

    Args:
        data: What is read.
        samples: How many.
        stored: The teacher's outputs.
        marks: Hashes of the samples that the teacher saw, by the same rows.
        views: How the samples are augmented.
        order: In which order they come.
    """
    elements = data.dataset.map(_as_tuple).unbatch().enumerate()
    elements = elements.apply(tf.data.experimental.assert_cardinality(samples))

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        one = elements
        if order.shuffle:
            # Of this function's graph alone: with the program's global seed in it, the order
            # would not be a function of (seed, epoch).
            tf.random.set_seed(1)
            seed = epoch + order.seed * 1_000_003
            one = one.shuffle(order.buffer, seed=seed, reshuffle_each_iteration=False)
        batches = one.batch(order.batch_size, drop_remainder=order.drop_remainder)
        return batches.map(lambda rows, element: (epoch, rows, element))

    def load(epoch: tf.Tensor, rows: tf.Tensor, element: tuple[Any, ...]) -> tuple[Any, ...]:
        view = epoch % views.views
        at = view * samples + rows
        same = row_fingerprints(element[0]) == marks(at)
        first = tf.reduce_min(tf.where(same, tf.int64.max, rows))
        tf.debugging.Assert(
            tf.reduce_all(same),
            [
                "The tf.data.Dataset no longer gives the samples of which the teacher cache was "
                "written. Expected the same ones in the same order. Received: others; first "
                "seen: sample",
                first,
                "Call cache_teacher(..., overwrite=True), or leave out shuffle() before it.",
            ],
        )
        inputs = views(element[0], rows, view)
        return (stored.taught(inputs, at), *element[1:])

    return _ready(
        _epochs(order).flat_map(epoch_batches),
        load,
        order.steps(samples) * (order.epochs - order.first_epoch),
    )


def _epochs(order: Order) -> tf.data.Dataset:
    return tf.data.Dataset.range(order.first_epoch, order.epochs)


def _ready(batches: tf.data.Dataset, load: Callable[..., Any], cardinality: int) -> tf.data.Dataset:
    batches = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = batches.apply(tf.data.experimental.assert_cardinality(cardinality))
    return batches.prefetch(tf.data.AUTOTUNE)


def _table(array: np.ndarray) -> Table:
    return Table([array], [len(array)], given(array[:1]).dtype)


def _gathered(tables: Any, rows: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda table: table(rows), tables)


def _as_tuple(*element: Any) -> tuple[Any, ...]:
    return element
