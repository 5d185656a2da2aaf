"""Knowledge distillation with the reused teacher classifier (Chen et al., arXiv 2203.14001)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.features.pairs import FeaturePairs, Pair, mean_per_sample
from kdtflite.distillation.losses.features.resizing import to_common_size

__all__ = ["SimpleKD"]


class SimpleKD(FeaturePairs):
    """Squared distance between the student's projected features and the teacher's.

        L = mean over elements of (f_teacher - P(f_student))²

    The only loss that the paper trains with (a mean of squares, as in its code): give the
    Distiller hard_label_weight=0. The projector P is part of the student, whose classifier is the
    teacher's: `reuse_classifier` builds such a student, with the projector's output named
    "simple_kd_projector". Tap the teacher before its pooling, at the layer after which the
    classifier was copied. Where the sizes differ, both maps are average-pooled to the smaller size.

    Args:
        student_layers: As in `FeatureLoss`.
        teacher_layers: As in `FeatureLoss`.
        name: Name of the term in logs.

    Raises:
        ShapeMismatchError: A map is paired with a vector, or the channels differ.
    """

    default_name = "simple_kd"

    def _make_adapter(self, pair: Pair, index: int) -> None:
        pair.check_ranks()
        student, teacher = pair.channels()
        if student != teacher:
            raise pair.mismatch(
                "expected as many channels as the teacher's classifier reads",
                "Build the student with reuse_classifier() and tap 'simple_kd_projector'.",
            )

    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        student, teacher = to_common_size(student, teacher)
        return mean_per_sample(tf.square(teacher - student))
