"""Losses between the relations of a batch's samples, and the arithmetic they share."""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.features.pairs import FeaturePairs

__all__ = ["RelationLoss", "flat_rows", "mean_of_rest"]


class RelationLoss(FeaturePairs):
    """A loss between how a batch's samples relate to each other in two layers.

    Relations have no width, so student and teacher layers of any shapes go together: whatever
    follows the batch axis is flattened. Several pairs of layers add up. The samples are those of
    one replica's batch.
    """

    def _loss_of_pair(
        self,
        student: tf.Tensor,
        teacher: tf.Tensor,
        adapter: keras.layers.Layer | None,
        index: int,
    ) -> tf.Tensor:
        del adapter, index
        return tf.cast(self._of_rows(flat_rows(student), flat_rows(teacher)), tf.float32)

    @abc.abstractmethod
    def _of_rows(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        """Returns each sample's share, shape (batch,), from float64 rows, shape (batch, width)."""


def flat_rows(features: Any) -> tf.Tensor:
    """Returns features as float64 rows, one a sample, shape (batch, width)."""
    features = tf.cast(features, tf.float64)
    shape = tf.shape(features)
    # Not [batch, -1]: an empty batch leaves -1 open.
    rows = tf.reshape(features, [shape[0], tf.reduce_prod(shape[1:])])
    return tf.ensure_shape(rows, [features.shape[0], features.shape[1:].num_elements()])


def mean_of_rest(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of each row of a (batch, batch) matrix over the columns of other samples.

    A sample alone has none: 0.
    """
    rest = tf.reduce_sum(
        tf.linalg.set_diag(values, tf.zeros_like(tf.linalg.diag_part(values))), axis=1
    )
    others = tf.cast(tf.shape(values)[0] - 1, values.dtype)
    return tf.math.divide_no_nan(rest, tf.maximum(others, 0.0))
