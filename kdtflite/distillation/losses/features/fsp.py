"""Flow of the solution procedure (Yim, Joo, Bae & Kim, CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.features.pairs import JoinedFeatures, Pair, mean_per_sample
from kdtflite.distillation.losses.features.resizing import to_common_size
from kdtflite.errors import ConfigurationError

__all__ = ["FSP"]


class FSP(JoinedFeatures):
    """Squared distance between the flows of two networks: how features turn into later ones.

        G = F_first ᵀ F_second / positions, shape (channels of first, channels of second)
        L = Σ over couples of mean over elements of (G_teacher - G_student)²

    The paper (equations 1 and 2) sums over the elements of G; the mean keeps the weight
    independent of the widths. The default weight 50 is for the mean, from the study by Tian et al.
    (arXiv 1910.10699). Within a couple the larger map is average-pooled to the smaller one.
    Student and teacher need the same channels, but not the same sizes.

    Args:
        student_layers: First and second layer of a couple, then of the next:
            ("stage1_in", "stage1_out", "stage2_in", "stage2_out").
        teacher_layers: As many layers of the teacher, in the same order.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: The number of layers is odd.
        ShapeMismatchError: The teacher has other channels, or the layers give vectors, or maps
            with different numbers of axes.
    """

    default_name = "fsp"
    default_weight = 50.0

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        if len(self.student_layers) % 2:
            raise ConfigurationError(
                f"{self.name}: expected layers in couples, the first and the second of each flow. "
                f"Received: {len(self.student_layers)}, {', '.join(self.student_layers)}."
            )

    def _make_adapter(self, pair: Pair, index: int) -> None:
        pair.check_ranks(positions=True)
        student, teacher = pair.channels()
        if student != teacher:
            raise pair.mismatch(
                "expected as many channels in the student's layer as in the teacher's",
                "Choose layers of equal width, or another loss: NST and AttentionTransfer take "
                "any, Hints learns an adapter.",
            )

    def _make_adapters(self, pairs: Sequence[Pair]) -> list[keras.layers.Layer | None]:
        adapters = super()._make_adapters(pairs)
        for first, second in zip(pairs[::2], pairs[1::2], strict=True):
            if len(first.student) != len(second.student):
                raise second.mismatch(
                    f"expected as many axes as the couple's first layer, {first.student_layer!r} "
                    f"{first.student}",
                    "Choose two layers that both give maps.",
                )
        return adapters

    def _compare_all(
        self,
        students: Sequence[tf.Tensor],
        teachers: Sequence[tf.Tensor],
        adapters: Sequence[keras.layers.Layer | None],
    ) -> tf.Tensor:
        flows = zip(_compute_flows(students), _compute_flows(teachers), strict=True)
        total = tf.add_n([mean_per_sample(tf.square(t - s)) for s, t in flows])
        return tf.cast(total, tf.float32)


def _compute_flows(features: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    return [
        _compute_flow(*to_common_size(first, second))
        for first, second in zip(features[::2], features[1::2], strict=True)
    ]


def _compute_flow(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    first, second = _flatten_positions(first), _flatten_positions(second)
    positions = tf.cast(tf.shape(first)[1], tf.float64)
    return tf.linalg.matmul(first, second, transpose_a=True) / positions


def _flatten_positions(maps: tf.Tensor) -> tf.Tensor:
    """Returns shape (batch, positions, channels), float64, since nearly equal flows cancel."""
    shape = tf.shape(maps)
    flat = tf.reshape(maps, [shape[0], tf.reduce_prod(shape[1:-1]), maps.shape[-1]])
    return tf.cast(flat, tf.float64)
