"""Training batches with a teacher's stored outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.batches import batch_rows
from kdtflite.distillation.step import CachedBatch
from kdtflite.distillation.teachers.cache.data import (
    ArrayData,
    StreamData,
    hash_rows,
    to_fit_dtype,
)
from kdtflite.distillation.teachers.cache.tables import Table
from kdtflite.distillation.teachers.cache.views import Views

__all__ = ["Order", "Stored", "make_array_batches", "make_stream_batches"]


@dataclass(frozen=True)
class Stored:
    """The teacher's outputs, with those of sample i in view v in row v * samples + i.

    Attributes:
        logits: Its logits.
        features: Outputs of its layers by path.
        inputs: The views, in the samples' structure; None where they were not stored.
    """

    logits: Table
    features: Mapping[str, Table]
    inputs: Any = None

    def make_batch(self, inputs: Any, at: tf.Tensor) -> CachedBatch:
        """Returns `inputs` with the outputs in the rows `at`."""
        features = {path: table(at) for path, table in self.features.items()}
        return CachedBatch(inputs, self.logits(at), features)


@dataclass(frozen=True)
class Order:
    """The order of the samples in every epoch.

    Attributes:
        batch_size: Samples per batch.
        first_epoch: The epoch to start with.
        epochs: The epoch to stop before; None for one epoch per reading, each the next one.
        seed: Seed of the order.
        shuffle: Whether they are shuffled.
        drop_remainder: Whether samples that do not fill a batch are left out.
        buffer: Size of the shuffle buffer of a tf.data.Dataset.
    """

    batch_size: int
    first_epoch: int
    epochs: int | None
    seed: int
    shuffle: bool
    drop_remainder: bool
    buffer: int

    def count_steps(self, samples: int) -> int:
        """Returns the number of batches in an epoch of `samples`."""
        rounded = 0 if self.drop_remainder else self.batch_size - 1
        return (samples + rounded) // self.batch_size


def make_array_batches(
    data: ArrayData, samples: int, stored: Stored, views: Views, order: Order
) -> tf.data.Dataset:
    """Returns batches (CachedBatch, y, sample_weight) of arrays, epoch after epoch.

    The order is that of `kdtflite.data.training_batches` for the same seed.
    """
    x = tf.nest.map_structure(_make_table, data.x)
    y = None if data.y is None else tf.nest.map_structure(_make_table, data.y)
    weight = None if data.sample_weight is None else _make_table(data.sample_weight)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.range(samples, dtype=tf.int64)
        if order.shuffle:
            seed = tf.stack([tf.constant(order.seed, tf.int64), epoch])
            rows = tf.random.experimental.stateless_shuffle(rows, seed)
        return batch_rows(rows, order.batch_size, drop_remainder=order.drop_remainder).map(
            lambda rows: (epoch, rows)
        )

    def load(epoch: tf.Tensor, rows: tf.Tensor) -> tuple[Any, ...]:
        view = epoch % views.views
        at = view * samples + rows
        inputs = stored.inputs
        inputs = views(_gather(x, rows), rows, view) if inputs is None else _gather(inputs, at)
        labels = () if y is None else (_gather(y, rows),)
        weights = () if weight is None else (weight(rows),)
        return (stored.make_batch(inputs, at), *labels, *weights)

    return _make_batches(order, samples, epoch_batches, load)


def make_stream_batches(
    data: StreamData, samples: int, stored: Stored, marks: Table, views: Views, order: Order
) -> tf.data.Dataset:
    """Returns batches (CachedBatch, y, sample_weight) of a tf.data.Dataset, epoch after epoch.

    Every sample is compared with the one that the teacher saw; a step fails with an explanation if
    they differ.

    Args:
        data: The data to read.
        samples: Number of samples.
        stored: The teacher's outputs.
        marks: Hashes of the samples that the teacher saw, in the same rows.
        views: How the samples are augmented.
        order: The order of the samples.
    """
    elements = data.dataset.map(_as_tuple).unbatch().enumerate()
    elements = elements.apply(tf.data.experimental.assert_cardinality(samples))

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        one = elements
        if order.shuffle:
            # Only for this function's graph: with the program's global seed in it, the order would
            # not be a function of (seed, epoch).
            tf.random.set_seed(1)
            seed = epoch + order.seed * 1_000_003
            one = one.shuffle(order.buffer, seed=seed, reshuffle_each_iteration=False)
        batches = one.batch(order.batch_size, drop_remainder=order.drop_remainder)
        return batches.map(lambda rows, element: (epoch, rows, element))

    def load(epoch: tf.Tensor, rows: tf.Tensor, element: tuple[Any, ...]) -> tuple[Any, ...]:
        view = epoch % views.views
        at = view * samples + rows
        same = hash_rows(element[0]) == marks(at)
        first = tf.reduce_min(tf.where(same, tf.int64.max, rows))
        tf.debugging.Assert(
            tf.reduce_all(same),
            [
                "The tf.data.Dataset no longer gives the samples from which the teacher cache "
                "was written. Expected the same samples in the same order. Received: others, "
                "the first at sample",
                first,
                "Call cache_teacher(..., overwrite=True), or leave out shuffle() before it.",
            ],
        )
        inputs = stored.inputs
        inputs = views(element[0], rows, view) if inputs is None else _gather(inputs, at)
        return (stored.make_batch(inputs, at), *element[1:])

    return _make_batches(order, samples, epoch_batches, load)


def _make_batches(
    order: Order, samples: int, epoch_batches: Callable[..., Any], load: Callable[..., Any]
) -> tf.data.Dataset:
    batches = _number_epochs(order).flat_map(epoch_batches)
    epochs = 1 if order.epochs is None else order.epochs - order.first_epoch
    cardinality = order.count_steps(samples) * epochs
    batches = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    batches = batches.apply(tf.data.experimental.assert_cardinality(cardinality))
    return batches.prefetch(tf.data.AUTOTUNE)


def _number_epochs(order: Order) -> tf.data.Dataset:
    """Returns the numbers of the epochs that one reading of the batches gives."""
    if order.epochs is not None:
        return tf.data.Dataset.range(order.first_epoch, order.epochs)
    numbers = itertools.count(order.first_epoch)

    def take_next(_: tf.Tensor) -> tf.Tensor:
        number = tf.numpy_function(lambda: np.int64(next(numbers)), [], tf.int64)
        return tf.ensure_shape(number, ())

    return tf.data.Dataset.range(1).map(take_next)


def _make_table(array: np.ndarray) -> Table:
    return Table([array], [len(array)], to_fit_dtype(array[:1]).dtype)


def _gather(tables: Any, rows: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda table: table(rows), tables)


def _as_tuple(*element: Any) -> tuple[Any, ...]:
    return element
