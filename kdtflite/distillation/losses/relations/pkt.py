"""Probabilistic knowledge transfer (Passalis & Tefas, arXiv 1803.10837)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from kdtflite.distillation.losses.logits.divergence import kl
from kdtflite.distillation.losses.norms import normalized
from kdtflite.distillation.losses.relations.base import RelationLoss

__all__ = ["PKT"]


class PKT(RelationLoss):
    """Divergence between the probabilities that samples choose each other as neighbours.

        L = 1/b² · Σᵢ Σ_{j≠i} p_{j|i} · ln(p_{j|i} / q_{j|i})

        p_{j|i} = K(t_i, t_j) / Σ_{k≠i} K(t_i, t_k)   (teacher; q is the student's)
        K(a, b) = ½ (cosine of a and b + 1)

    (Passalis & Tefas, arXiv 1803.10837, equations 6 to 9.) As in the paper no sample is its own
    neighbour; its authors' program lets the diagonal in, which adds a constant neighbour of
    similarity 1 and weakens the rest. The factor 1/b², which the paper leaves open, is that
    program's mean over the pairs, and the default weight of 30000 is the one that the benchmark
    of arXiv 1910.10699 uses with it, for batches of 64.

    A sample's share is its row's divergence, divided by b. Computed in float64. K has 1e-7 added,
    so that samples in opposite directions keep a finite logarithm.

    Args:
        student_layers: Name of a layer of the student, or several. The paper takes the last one
            before the classes.
        teacher_layers: The teacher's, in the same order.
        name: Name of the term in logs.

    Returns:
        One value a sample, shape (batch,), float32: 0 for a batch of one or two.
    """

    default_weight = 30000.0

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        name: str = "pkt",
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)

    def _of_rows(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        batch = tf.cast(tf.shape(student)[0], student.dtype)
        return tf.math.divide_no_nan(kl(_neighbours(teacher), _neighbours(student)), batch)


def _neighbours(rows: tf.Tensor) -> tf.Tensor:
    """Returns the log-probabilities of row i to choose j."""
    rows = normalized(rows)
    # Rounding may take a cosine a step below -1.
    cosines = tf.clip_by_value(tf.matmul(rows, rows, transpose_b=True), -1.0, 1.0)
    logs = tf.math.log((cosines + 1.0) / 2.0 + 1e-7)
    # As good as -inf, which would make the row of a sample alone NaN.
    never = tf.fill([tf.shape(rows)[0]], tf.constant(-1e30, logs.dtype))
    return tf.nn.log_softmax(tf.linalg.set_diag(logs, never))
