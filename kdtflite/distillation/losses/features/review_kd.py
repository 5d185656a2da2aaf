"""Knowledge review (Chen, Liu, Zhao & Jia, arXiv 2104.09044)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses.features.adapters import BatchNormalization, make_pointwise
from kdtflite.distillation.losses.features.pairs import JoinedFeatures, Pair, mean_per_sample
from kdtflite.distillation.losses.features.resizing import average_pool, resize_nearest
from kdtflite.errors import ConfigurationError

__all__ = ["ReviewKD"]

_LEVELS = (4, 2, 1)
_MOST_CHANNELS = 512


class ReviewKD(JoinedFeatures):
    """Distance between the teacher's stages and all of the student's from that depth on.

    From the deepest layer to the shallowest, attention-based fusion mixes a layer's features,
    reduced to `mid_channels`, with the mixture of the deeper layers by two learned attention maps;
    a 3x3 convolution turns the result into the teacher's channels. The hierarchical context loss
    compares the maps as they are and average-pooled to 4x4, 2x2 and 1x1:

        L = Σ over layers of (D + ½ D₄ₓ₄ + ¼ D₂ₓ₂ + ⅛ D₁ₓ₁) / (1 + ½ + ¼ + ⅛)

    with D the mean squared difference; levels not smaller than the map are left out, and the
    others move up. Convolutions stand before batch normalization and have no bias, as in the
    authors' code. A student's map of another size than the teacher's is resized by nearest
    neighbors. Vectors are maps of 1x1, so the pooled features may be the last layer. The default
    weight is 1; the authors take 0.6 to 8, depending on the model, and raise it over the first 20
    epochs.

    Args:
        student_layers: As in `FeatureLoss`, from shallow to deep.
        teacher_layers: As in `FeatureLoss`, in the same order.
        mid_channels: Width of the fused features; None for that of the student's deepest
            layer, at most 512.
        name: Name of the term in logs.

    Raises:
        ConfigurationError: `mid_channels` is not positive.
        ShapeMismatchError: The features are neither maps of images nor vectors.
    """

    default_name = "review_kd"

    def __init__(
        self,
        student_layers: str | Sequence[str],
        teacher_layers: str | Sequence[str],
        *,
        mid_channels: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(student_layers, teacher_layers, name=name)
        if mid_channels is not None and mid_channels < 1:
            raise ConfigurationError(
                f"{self.name}: expected positive mid_channels, or None. Received: {mid_channels}."
            )
        self.mid_channels = mid_channels

    def _make_adapters(self, pairs: Sequence[Pair]) -> list[keras.layers.Layer | None]:
        for pair in pairs:
            if not {len(pair.student), len(pair.teacher)} <= {2, 4}:
                raise pair.mismatch(
                    "expected maps (batch, height, width, channels) or vectors (batch, channels)",
                    "Choose other layers.",
                )
        deepest, _ = pairs[-1].channels()
        middle = self.mid_channels or min(deepest, _MOST_CHANNELS)
        adapters: list[keras.layers.Layer | None] = []
        for pair in pairs:
            student, teacher = pair.channels()
            fusion = _Fusion(middle, teacher, fuses=pair is not pairs[-1])
            fusion.build((None, None, None, student))
            adapters.append(fusion)
        return adapters

    def _compare_all(
        self,
        students: Sequence[tf.Tensor],
        teachers: Sequence[tf.Tensor],
        adapters: Sequence[Any],
    ) -> tf.Tensor:
        losses, deeper = [], None
        for student, teacher, fusion in reversed(
            list(zip(students, teachers, adapters, strict=True))
        ):
            student, teacher = _to_maps(student), _to_maps(teacher)
            fused, deeper = fusion(student, deeper, teacher)
            losses.append(_compare_hierarchically(fused, teacher))
        return tf.add_n(losses)


class _Fusion(keras.layers.Layer):
    """Attention-based fusion of one layer's features with those of deeper layers."""

    def __init__(self, middle: int, channels: int, *, fuses: bool) -> None:
        super().__init__(dtype="float32")
        # He's uniform initialization for a linear layer, as in the authors' code.
        options = {"use_bias": False, "kernel_initializer": "lecun_uniform"}
        self.reduce = make_pointwise(middle, **options)
        self.reduce_norm = BatchNormalization()
        self.attention = make_pointwise(2, activation="sigmoid") if fuses else None
        self.expand = keras.layers.Conv2D(channels, 3, padding="same", dtype="float32", **options)
        self.expand_norm = BatchNormalization()

    def build(self, input_shape: Any) -> None:
        middle = (*input_shape[:-1], self.reduce.units)
        self.reduce.build(input_shape)
        self.reduce_norm.build(middle)
        if self.attention is not None:
            self.attention.build((*input_shape[:-1], 2 * self.reduce.units))
        self.expand.build(middle)
        self.expand_norm.build((*input_shape[:-1], self.expand.filters))
        super().build(input_shape)

    def call(
        self, student: tf.Tensor, deeper: tf.Tensor | None, teacher: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        fused = self.reduce_norm(self.reduce(student))
        if self.attention is not None:
            deeper = resize_nearest(deeper, like=fused)
            maps = self.attention(tf.concat([fused, deeper], axis=-1))
            fused = fused * maps[..., :1] + deeper * maps[..., 1:]
        fused = resize_nearest(fused, like=teacher)
        return self.expand_norm(self.expand(fused)), fused


def _to_maps(features: tf.Tensor) -> tf.Tensor:
    return features[:, tf.newaxis, tf.newaxis, :] if features.shape.rank == 2 else features


def _compare_hierarchically(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    height, width = (teacher.shape[axis] or tf.shape(teacher)[axis] for axis in (1, 2))
    loss, weights, weight = mean_per_sample(tf.square(student - teacher)), 1.0, 1.0
    for level in _LEVELS:
        smaller = (level < height) & (level < width)
        if smaller is False:  # known before the graph runs
            continue
        counts = tf.cast(smaller, tf.float32)
        weight *= 1.0 - 0.5 * counts
        weights += weight * counts
        squares = tf.square(_pool_to(student, level) - _pool_to(teacher, level))
        loss += weight * counts * mean_per_sample(squares)
    return loss / weights


def _pool_to(maps: tf.Tensor, level: int) -> tf.Tensor:
    return average_pool(average_pool(maps, 1, level), 2, level)
