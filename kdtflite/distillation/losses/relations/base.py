"""The base of the losses between the relations of a batch's samples."""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.features.pairs import FeaturePairs

__all__ = ["RelationLoss", "flatten_rows"]


class RelationLoss(FeaturePairs):
    """A loss between how a batch's samples relate to each other in two layers.

    Relations have no width, so student and teacher layers of any shapes can be compared: all axes
    after the batch are flattened. Several pairs of layers add up. The samples are those of
    one replica's batch.
    """

    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        del adapter, index
        return tf.cast(self._compare_rows(flatten_rows(student), flatten_rows(teacher)), tf.float32)

    @abc.abstractmethod
    def _compare_rows(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        """Returns each sample's share, shape (batch,), from float64 rows, shape (batch, width)."""


def flatten_rows(features: Any) -> tf.Tensor:
    """Returns features as float64 rows, one per sample, shape (batch, width)."""
    features = tf.cast(features, tf.float64)
    shape = tf.shape(features)
    # Not [batch, -1]: an empty batch leaves -1 open.
    rows = tf.reshape(features, [shape[0], tf.reduce_prod(shape[1:])])
    return tf.ensure_shape(rows, [features.shape[0], features.shape[1:].num_elements()])
