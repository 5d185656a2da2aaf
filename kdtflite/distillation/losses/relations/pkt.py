"""Probabilistic knowledge transfer (Passalis & Tefas, arXiv 1803.10837)."""

from __future__ import annotations

import tensorflow as tf

from kdtflite.distillation.losses.logits.divergence import kl
from kdtflite.distillation.losses.norms import normalize
from kdtflite.distillation.losses.relations.base import RelationLoss

__all__ = ["PKT"]


class PKT(RelationLoss):
    """Divergence between the probabilities that samples choose each other as neighbors.

        L = 1/b² · Σᵢ Σ_{j≠i} p_{j|i} · ln(p_{j|i} / q_{j|i})

        p_{j|i} = K(t_i, t_j) / Σ_{k≠i} K(t_i, t_k)   (teacher; q is the student's)
        K(a, b) = ½ (cosine of a and b + 1)

    (Passalis & Tefas, arXiv 1803.10837, equations 6 to 9.) As in the paper, no sample is its own
    neighbor; its authors' code includes the diagonal, which adds a constant neighbor of similarity
    1 and weakens the rest. The factor 1/b², which the paper leaves open, is that
    code's mean over the pairs, and the default weight of 30000 is the one that the benchmark
    of arXiv 1910.10699 uses with it, for batches of 64.

    A sample's share is its row's divergence, divided by b. Computed in float64. K has 1e-7 added,
    so that samples in opposite directions keep a finite logarithm.

    Args:
        student_layers: One or more layers of the student, by name. The paper takes the last one
            before the classes.
        teacher_layers: As many layers of the teacher, in the same order.
        name: Name of the term in logs.

    Returns:
        One value per sample, shape (batch,), float32: 0 for a batch of one or two.
    """

    default_name = "pkt"
    default_weight = 30000.0

    def _compare_rows(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        batch = tf.cast(tf.shape(student)[0], student.dtype)
        divergence = kl(_log_probabilities(teacher), _log_probabilities(student))
        return tf.math.divide_no_nan(divergence, batch)


def _log_probabilities(rows: tf.Tensor) -> tf.Tensor:
    """Returns the log-probabilities that row i chooses j."""
    rows = normalize(rows)
    # Rounding may put a cosine slightly below -1.
    cosines = tf.clip_by_value(tf.matmul(rows, rows, transpose_b=True), -1.0, 1.0)
    logs = tf.math.log((cosines + 1.0) / 2.0 + 1e-7)
    # In place of -inf, which would turn the row of a lone sample into NaN.
    never = tf.fill([tf.shape(rows)[0]], tf.constant(-1e30, logs.dtype))
    return tf.nn.log_softmax(tf.linalg.set_diag(logs, never))
