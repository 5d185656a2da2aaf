"""Attention transfer (Zagoruyko & Komodakis, arXiv 1612.03928)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.features.pairs import FeaturePairs, Pair
from kdtflite.distillation.losses.features.resizing import to_common_size
from kdtflite.distillation.losses.norms import norm, normalize
from kdtflite.errors import ConfigurationError

__all__ = ["AttentionTransfer"]


class AttentionTransfer(FeaturePairs):
    """Distance between where student and teacher look, whatever their numbers of channels.

        Q = Σ over channels of |A|^p, flattened over the positions
        L = Σ over pairs of ‖Q_student / ‖Q_student‖₂ - Q_teacher / ‖Q_teacher‖₂‖₂

    Equation 2 of the paper, without its factor β/2, which is the weight. The authors set β to
    10³ divided by the positions and the batch size, for a sum over the batch; the default weight
    is their β/2 for maps of 8x8, 10³ / (2 · 64). (Their code, and many after it, takes the mean
    of squares in place of the norm.) Where the sizes differ, both maps are average-pooled to the
    smaller size. A map of zeros looks nowhere: its normalized Q is 0.

    Args:
        student_layers: As in `FeatureLoss`, layers that give maps.
        teacher_layers: As in `FeatureLoss`.
        p: Power of the activations, at least 1. A larger power stresses the strongest activations.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: `p` is below 1 or not finite.
        ShapeMismatchError: The layers give vectors, or maps with different numbers of axes.
    """

    default_name = "attention_transfer"
    default_weight = 1e3 / (2 * 64)

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        p: float = 2.0,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        if not 1 <= p < math.inf:
            raise ConfigurationError(f"{self.name}: expected p of at least 1. Received: p={p}.")
        self.p = float(p)

    def _make_adapter(self, pair: Pair, index: int) -> None:
        pair.check_ranks(positions=True)

    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        student, teacher = to_common_size(student, teacher)
        difference = normalize(self._attend(student)) - normalize(self._attend(teacher))
        return tf.cast(norm(difference)[:, 0], tf.float32)

    def _attend(self, maps: tf.Tensor) -> tf.Tensor:
        # In float64: the difference of two nearly equal maps cancels, and powers grow.
        attention = tf.reduce_sum(tf.abs(tf.cast(maps, tf.float64)) ** self.p, axis=-1)
        shape = tf.shape(attention)
        return tf.reshape(attention, [shape[0], tf.reduce_prod(shape[1:])])
