"""Knowledge distillation with the reused teacher classifier (Chen et al., arXiv 2203.14001)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.features.pairs import FeaturePairs, Pair, mean_of_sample
from kdtflite.distillation.losses.features.resizing import to_common_size

__all__ = ["SimpleKD"]


class SimpleKD(FeaturePairs):
    """Squared distance between the student's projected features and the teacher's.

        L = mean over elements of (f_teacher - P(f_student))²

    The only loss that the paper trains with (a mean of squares, as in its code): give the
    Distiller hard_label_weight=0. The projector P is part of the student, whose classifier is the
    teacher's: `reuse_classifier` builds such a student, with the projector's output named
    "simple_kd_projector". Tap the teacher before its pooling, at the layer after which the
    classifier was taken. Where the sizes differ, both maps are average-pooled to the smaller.

    Args:
        student_layers: As in `FeatureLoss`.
        teacher_layers: As in `FeatureLoss`.
        name: Name of the term in logs.

    Raises:
        ShapeMismatchError: Maps against vectors, or other channels.
    """

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        name: str = "simple_kd",
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)

    def _make_adapter(self, pair: Pair, index: int) -> None:
        pair.check_ranks()
        student, teacher = pair.channels()
        if student != teacher:
            raise pair.mismatch(
                "expected as many channels as the teacher's classifier reads",
                "Build the student with reuse_classifier() and tap 'simple_kd_projector'.",
            )

    def _loss_of_pair(
        self,
        student: tf.Tensor,
        teacher: tf.Tensor,
        adapter: keras.layers.Layer | None,
        index: int,
    ) -> tf.Tensor:
        student, teacher = to_common_size(student, teacher)
        return mean_of_sample(tf.square(teacher - student))
