"""Relational knowledge distillation (Park, Kim, Lu & Cho, arXiv 1904.05068)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from kdtflite.distillation.losses.checks import check_not_negative
from kdtflite.distillation.losses.relations.base import RelationLoss

__all__ = ["RelationalKD"]


class RelationalKD(RelationLoss):
    """Difference between the distances, and between the angles, of a batch's samples.

        L = λ_D · mean over i ≠ j of H(d_ij(student) - d_ij(teacher))
          + λ_A · mean over i ≠ j ≠ k of H(a_ijk(student) - a_ijk(teacher))

        d_ij  = ‖f_i - f_j‖ / (mean over i ≠ j of ‖f_i - f_j‖)
        a_ijk = cosine of the angle at f_i between the directions to f_j and to f_k

    H is the Huber function with δ = 1 (Park et al., arXiv 1904.05068, section 3.2). The paper
    sums over pairs and triplets; the means, which its authors' code takes, are independent of the
    batch size. That code divides by b² and b³: it counts a sample's relation to itself, here 0.

    A sample's share comes from its own row of pairs and from the triplets with their vertex at it.
    Computed in float64 from the Gram matrix of the centered rows, which takes memory of the order
    of b³, whatever the width of the features. Samples nearer than 1e-6 of their distance from the
    batch's mean count as equal: distance 0, no angle, no gradient.

    Args:
        student_layers: One or more layers of the student, by name.
        teacher_layers: As many layers of the teacher, in the same order. Usually
            embeddings, after pooling.
        distance_weight: λ_D. 25, the paper's for classification.
        angle_weight: λ_A. 50, the paper's for classification.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32: 0 for a batch of one.

    Raises:
        ConfigurationError: A weight is negative.
    """

    default_name = "relational_kd"

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        self.distance_weight = check_not_negative("distance_weight", distance_weight)
        self.angle_weight = check_not_negative("angle_weight", angle_weight)

    def _compare_rows(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        student_gram, student_distances = _compute_distances(student)
        teacher_gram, teacher_distances = _compute_distances(teacher)
        share = tf.zeros_like(tf.linalg.diag_part(student_gram))
        if self.distance_weight:
            difference = _divide_by_mean(student_distances) - _divide_by_mean(teacher_distances)
            share += self.distance_weight * _average_rest(_huber(difference))
        if self.angle_weight:
            difference = _compute_angles(student_gram, student_distances)
            difference -= _compute_angles(teacher_gram, teacher_distances)
            share += self.angle_weight * _average_corners(_huber(difference))
        return share


def _compute_distances(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the Gram matrix of the centered rows, and the rows' distances: (batch, batch)."""
    # Centering changes no distance, and a common offset would cancel the digits below.
    rows -= tf.math.divide_no_nan(
        tf.reduce_sum(rows, axis=0), tf.cast(tf.shape(rows)[0], rows.dtype)
    )
    gram = tf.matmul(rows, rows, transpose_b=True)
    norms = tf.linalg.diag_part(gram)
    norms = norms[:, None] + norms[None, :]
    squares = norms - 2.0 * gram
    # What rounding leaves of equal rows is no distance; sqrt has no gradient at 0.
    apart = squares > 1e-12 * norms
    return gram, tf.where(apart, tf.sqrt(tf.where(apart, squares, 1.0)), 0.0)


def _divide_by_mean(distances: tf.Tensor) -> tf.Tensor:
    """Returns distances divided by their mean over all pairs of different samples."""
    count = tf.cast(tf.shape(distances)[0], distances.dtype)
    mean = tf.math.divide_no_nan(tf.reduce_sum(distances), count * (count - 1.0))
    return tf.math.divide_no_nan(distances, mean)


def _compute_angles(gram: tf.Tensor, distances: tf.Tensor) -> tf.Tensor:
    """Returns the cosines at i between the directions to j and k, shape (batch, batch, batch)."""
    norms = tf.linalg.diag_part(gram)
    products = gram[None, :, :] - gram[:, :, None] - gram[:, None, :] + norms[:, None, None]
    return tf.math.divide_no_nan(products, distances[:, :, None] * distances[:, None, :])


def _average_rest(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of each row of a (batch, batch) matrix over the columns of other samples.

    It is 0 for a lone sample.
    """
    rest = tf.reduce_sum(
        tf.linalg.set_diag(values, tf.zeros_like(tf.linalg.diag_part(values))), axis=1
    )
    others = tf.cast(tf.shape(values)[0] - 1, values.dtype)
    return tf.math.divide_no_nan(rest, tf.maximum(others, 0.0))


def _average_corners(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean over j ≠ k, both other than i, of values where j = i or k = i are 0."""
    off_diagonal = tf.linalg.set_diag(values, tf.zeros_like(tf.linalg.diag_part(values)))
    count = tf.cast(tf.shape(values)[0], values.dtype)
    corners = tf.maximum(count - 1.0, 0.0) * tf.maximum(count - 2.0, 0.0)
    return tf.math.divide_no_nan(tf.reduce_sum(off_diagonal, axis=[1, 2]), corners)


def _huber(difference: tf.Tensor) -> tf.Tensor:
    size = tf.abs(difference)
    return tf.where(size <= 1.0, 0.5 * tf.square(difference), size - 0.5)
