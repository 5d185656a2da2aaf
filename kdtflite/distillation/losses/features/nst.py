"""Neuron selectivity transfer (Huang & Wang, arXiv 1707.01219)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from kdtflite.distillation.losses.features.pairs import FeaturePairs, Pair
from kdtflite.distillation.losses.features.resizing import to_common_size
from kdtflite.distillation.losses.norms import normalize

__all__ = ["NST"]


class NST(FeaturePairs):
    """Squared maximum mean discrepancy between the responses of both networks' channels.

        f = a channel's responses over the positions, of length 1;  k(f, g) = (fᵀ g)²
        L = Σ over pairs of mean k(f_t, f_t') + mean k(f_s, f_s') - 2 mean k(f_s, f_t)

    The paper's MMD² with its polynomial kernel (d = 2, c = 0), means over all pairs of channels,
    so that student and teacher may have any number. A channel that never responds stays zero.
    Where the sizes of the maps differ, both are average-pooled to the smaller size. The default
    weight 50 is that of the study by Tian et al. (arXiv 1910.10699).

    Args:
        student_layers: As in `FeatureLoss`, layers that give maps.
        teacher_layers: As in `FeatureLoss`.
        name: Name of the term in logs.

    Raises:
        ShapeMismatchError: The layers give vectors, or maps with different numbers of axes.
    """

    default_name = "nst"
    default_weight = 50.0

    def _make_adapter(self, pair: Pair, index: int) -> None:
        pair.check_ranks(positions=True)

    def _compare(
        self, student: tf.Tensor, teacher: tf.Tensor, adapter: Any, index: int
    ) -> tf.Tensor:
        s, t = (_normalize_channels(maps) for maps in to_common_size(student, teacher))
        discrepancy = _mean_kernel(s, s) + _mean_kernel(t, t) - 2.0 * _mean_kernel(s, t)
        return tf.cast(discrepancy, tf.float32)


def _normalize_channels(maps: tf.Tensor) -> tf.Tensor:
    """Returns shape (batch, channels, positions), each channel of length 1, in float64.

    The three means cancel when the student nearly equals its teacher.
    """
    shape = tf.shape(maps)
    flat = tf.reshape(maps, [shape[0], tf.reduce_prod(shape[1:-1]), shape[-1]])
    return normalize(tf.cast(tf.linalg.matrix_transpose(flat), tf.float64))


def _mean_kernel(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    products = tf.linalg.matmul(first, second, transpose_b=True)
    return tf.reduce_mean(tf.square(products), axis=[1, 2])
