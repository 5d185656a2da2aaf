"""Similarity-preserving distillation (Tung & Mori, arXiv 1907.09682)."""

from __future__ import annotations

import tensorflow as tf

from kdtflite.distillation.losses.norms import normalize
from kdtflite.distillation.losses.relations.base import RelationLoss

__all__ = ["SimilarityPreserving"]


class SimilarityPreserving(RelationLoss):
    """Difference between the similarities of a batch's samples in two layers.

        L = 1/b² · ‖G(student) - G(teacher)‖²_F,  summed over the pairs of layers

    where G is the Gram matrix F·Fᵀ of the flattened features, each row divided by its L2 norm
    (Tung & Mori, arXiv 1907.09682, equations 1 to 4). It falls with the batch size; the paper's
    weight of 3000, the default here, is for batches of 128.

    A sample's share is its row's, divided by b. Computed in float64.

    Args:
        student_layers: One or more layers of the student, by name.
        teacher_layers: As many layers of the teacher, in the same order. The paper takes
            the activations at the ends of blocks.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32.
    """

    default_name = "similarity_preserving"
    default_weight = 3000.0

    def _compare_rows(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        difference = _compute_similarities(student) - _compute_similarities(teacher)
        batch = tf.cast(tf.shape(student)[0], student.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(tf.square(difference), axis=1), batch)


def _compute_similarities(rows: tf.Tensor) -> tf.Tensor:
    return normalize(tf.matmul(rows, rows, transpose_b=True))
