"""Hints (FitNets: Romero et al., arXiv 1412.6550)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.features.adapters import make_pointwise
from kdtflite.distillation.losses.features.pairs import FeaturePairs, Pair, mean_per_sample
from kdtflite.distillation.losses.features.resizing import to_common_size
from kdtflite.errors import choose

__all__ = ["Hints"]


class Hints(FeaturePairs):
    """Squared distance between the teacher's features and the student's, through a regressor.

        L = Σ over pairs of ½ · mean over elements of (u_teacher - r(v_student))²

    The paper (equation 3) sums over the elements; the mean keeps the weight independent of the
    layers' sizes. r is a learned 1x1 convolution, or a Dense layer for vectors. Where the sizes of
    the maps differ, both are average-pooled to the smaller size; the paper instead chooses the
    regressor's kernel so that they agree.

    The default weight 200 is that of the study by Tian et al. (arXiv 1910.10699): 100 for the
    mean without the ½.

    Args:
        student_layers: As in `FeatureLoss`.
        teacher_layers: As in `FeatureLoss`.
        adapter: "auto": a regressor where the channels differ; "always"; "none": never.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: There is no such `adapter`.
        ShapeMismatchError: A map is paired with a vector, or channels differ with adapter="none".

    Example:
        >>> from kdtflite.losses import Hints
        >>> Hints("conv", "conv")([[[1.0, 2.0]]], [[[1.0, 4.0]]]).numpy()
        array([1.], dtype=float32)
    """

    default_name = "hints"
    default_weight = 200.0

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        adapter: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        self.adapter = choose(adapter, ("auto", "always", "none"), what="adapter")

    def _make_adapter(self, pair: Pair, index: int) -> keras.layers.Layer | None:
        pair.check_ranks()
        narrow, wide = pair.channels()
        if self.adapter == "none" and narrow != wide:
            raise pair.mismatch(
                "expected as many channels without an adapter", "Pass adapter='auto'."
            )
        if self.adapter == "none" or (self.adapter == "auto" and narrow == wide):
            return None
        regressor = make_pointwise(wide)
        regressor.build(pair.student)
        return regressor

    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        # A 1x1 convolution of means is the mean of the convolutions: it comes after the pooling.
        student, teacher = to_common_size(student, teacher)
        regressed = student if adapter is None else adapter(student)
        return 0.5 * mean_per_sample(tf.square(teacher - regressed))
