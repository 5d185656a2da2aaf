"""Mixed samples: MixUp and CutMix, the same for the student and the teacher."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from kdtflite.distillation.reduction import expand_to_rank
from kdtflite.distillation.step import CachedBatch
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.models.keras_internals import get_mask, set_mask

__all__ = ["CutMix", "MixUp", "Mixed", "Mixing"]


@dataclass(frozen=True)
class Mixed:
    """A mixed batch.

    Attributes:
        inputs: The mixed samples.
        partner: Row of the sample that each one was mixed with, shape (batch,), int32.
        share: Share of each sample's own label, shape (batch,), from 0.5 to 1.
        box: The pixels that are the partner's, shape (batch or 1, height, width), bool; None where
            every value is mixed.
    """

    inputs: Any
    partner: tf.Tensor
    share: tf.Tensor
    box: tf.Tensor | None = None

    def select_partners(self, values: Any) -> Any:
        """Returns the values (labels) of each sample's partner; None for None."""
        if values is None:
            return None
        return tf.nest.map_structure(lambda v: tf.gather(v, self.partner), values)

    def mix(self, own: tf.Tensor, partners: tf.Tensor) -> tf.Tensor:
        """Returns the losses on the own label and on the partner's, weighted by their shares.

        Their masks go along: what counts in either of them counts in the mix.
        """
        mixed = self.average(own, partners)
        masks = [mask for mask in (get_mask(own), get_mask(partners)) if mask is not None]
        if masks:
            set_mask(mixed, tf.reduce_any(tf.stack(masks), axis=0))
        return mixed

    def average(self, own: tf.Tensor, partners: tf.Tensor) -> tf.Tensor:
        """Returns the mean of values (batch, ...), each weighted by its share."""
        share = tf.cast(expand_to_rank(self.share, own), own.dtype)
        return share * own + (1 - share) * partners

    def cut(self, values: Any) -> Any:
        """Returns maps (labels or weights of pixels) in which the box is the partner's.

        Args:
            values: Shape (batch, height, width, ...), of any size; a structure of them, or None.
                What has fewer axes is returned as it is.
        """

        def cut(own: tf.Tensor) -> tf.Tensor:
            own = tf.convert_to_tensor(own)
            if self.box is None or own.shape.rank < 3:
                return own
            box = self.box
            for axis in (1, 2):
                size, pixels = tf.shape(own)[axis], tf.shape(box)[axis]
                # The pixel of the image in the middle of each one of the map.
                box = tf.gather(box, (2 * tf.range(size) + 1) * pixels // (2 * size), axis=axis)
            return tf.where(expand_to_rank(box, own), tf.gather(own, self.partner), own)

        return None if values is None else tf.nest.map_structure(cut, values)


class Mixing(abc.ABC):
    """Mixes every sample of a batch with another one, for the student and the teacher alike.

    Teacher and student get the same mix, so that the soft targets belong to what the student sees
    (Beyer et al., "a good teacher is patient and consistent", arXiv 2106.05237). The hard-label
    loss is that of both labels, weighted by their shares, and a loss of a regression that reads
    labels is given their weighted mean. Where the other sample has the larger
    share, own and partner change places: the mix stays the same, and the row's weight and metrics
    belong to the sample that makes up most of it.

    Random numbers are TensorFlow's own: `keras.utils.set_random_seed` makes them repeatable.

    Args:
        alpha: λ is drawn from Beta(alpha, alpha); the greater alpha, the closer λ is to one half.
        per_sample: Draw λ for each sample; by default once per batch, as the papers' authors do.

    Raises:
        ConfigurationError: alpha is not a positive number.
    """

    def __init__(self, alpha: float, *, per_sample: bool = False) -> None:
        if not (math.isfinite(alpha) and alpha > 0):
            raise ConfigurationError(
                f"Expected a positive, finite alpha. Received: alpha={alpha}. "
                "Leave out mixing= to train on the samples as they are."
            )
        self.alpha = float(alpha)
        self.per_sample = per_sample

    def __call__(self, x: Any) -> Mixed:
        """Returns the mixed batch.

        Args:
            x: Floating samples, shape (batch, ...), or a structure of them, all mixed the same way.

        Raises:
            ConfigurationError: Samples that come with a teacher's cached outputs.
            DataError: Samples that cannot be mixed, such as integers.
        """
        if isinstance(x, CachedBatch):
            raise ConfigurationError(
                f"{type(self).__name__} cannot be used with cached teacher outputs: they belong "
                "to the samples as they were cached, not to mixed ones. Leave out mixing=, or "
                "use the model itself as the teacher."
            )
        x = tf.nest.map_structure(tf.convert_to_tensor, x)
        self._check(tf.nest.flatten(x))
        batch = tf.shape(tf.nest.flatten(x)[0])[0]
        partner = tf.random.shuffle(tf.range(batch))
        share = self._draw(batch if self.per_sample else 1)
        mixed = self._mix(x, partner, share)
        return replace(mixed, share=tf.broadcast_to(mixed.share, [batch]))

    @abc.abstractmethod
    def _mix(self, x: Any, partner: tf.Tensor, share: tf.Tensor) -> Mixed:
        """Returns the mixed samples, with a share per sample or one for all.

        Args:
            x: Samples, shape (batch, ...).
            partner: Row of each sample's partner, shape (batch,).
            share: λ as drawn, shape (batch,) or (1,).
        """

    def _check(self, samples: list[tf.Tensor]) -> None:
        for tensor in samples:
            if not tensor.dtype.is_floating:
                raise DataError(
                    f"{type(self).__name__} mixes samples of a floating dtype. Received: "
                    f"{tensor.dtype.name}, shape {tuple(tensor.shape)}. Scale images to floats "
                    "first; numbers that stand for symbols (tokens) have no mean."
                )

    def _draw(self, count: tf.Tensor | int) -> tf.Tensor:
        """Returns λ, shape (count,), float32."""
        # λ = G / (G + G') of two gammas; in logarithms, since both underflow for a small alpha:
        # ln Gamma(α) = ln Gamma(α + 1) + ln(U) / α.
        gammas = tf.random.gamma([2, count], self.alpha + 1, dtype=tf.float64)
        uniform = tf.random.uniform(tf.shape(gammas), minval=1e-300, dtype=tf.float64)
        one, other = tf.unstack(tf.math.log(gammas) + tf.math.log(uniform) / self.alpha)
        return tf.cast(tf.sigmoid(one - other), tf.float32)


class MixUp(Mixing):
    """Every sample becomes a weighted mean of itself and another (Zhang et al., arXiv 1710.09412).

        x̃ = λ x + (1 - λ) x_partner,   L_hard = λ L(y) + (1 - λ) L(y_partner),   λ ~ Beta(α, α)

    Args:
        alpha: α; the paper uses 0.1 to 0.4 on ImageNet and 1 on CIFAR-10.
        per_sample: Draw λ for each sample instead of once per batch.

    Raises:
        ConfigurationError: alpha is not a positive number.

    Example:
        >>> import numpy as np
        >>> mixed = MixUp(alpha=0.2)(np.ones((4, 8, 8, 1), np.float32))
        >>> mixed.inputs.shape
        TensorShape([4, 8, 8, 1])
    """

    def __init__(self, alpha: float = 0.2, *, per_sample: bool = False) -> None:
        super().__init__(alpha, per_sample=per_sample)

    def _mix(self, x: Any, partner: tf.Tensor, share: tf.Tensor) -> Mixed:
        share = tf.maximum(share, 1.0 - share)

        def average(tensor: tf.Tensor) -> tf.Tensor:
            own = expand_to_rank(tf.cast(share, tensor.dtype), tensor)
            return own * tensor + (1 - own) * tf.gather(tensor, partner)

        return Mixed(tf.nest.map_structure(average, x), partner, share)


class CutMix(Mixing):
    """A box in every image is replaced by that of another image (Yun et al., arXiv 1905.04899).

        x̃ = M ⊙ x + (1 - M) ⊙ x_partner,   L_hard = λ L(y) + (1 - λ) L(y_partner)

    M is 0 in a box whose sides are √(1 - λ) times the image's and whose center is anywhere in the
    image. The box may extend beyond the image; in the end λ is the share of the image outside the
    box. A box that covers more than half of the image is kept, and the rest comes from the other.

    A student that gives a map (segmentation) has a label per pixel: the box of the labels, and of
    weights per pixel, is the other image's too, and there is no λ in its loss.

    Args:
        alpha: α of λ ~ Beta(α, α); 1, as in the paper, draws λ uniformly.
        per_sample: Draw λ and the box for each sample instead of once per batch.

    Raises:
        ConfigurationError: alpha is not a positive number.

    Example:
        >>> import numpy as np
        >>> mixed = CutMix(alpha=1.0)(np.ones((4, 8, 8, 1), np.float32))
        >>> mixed.inputs.shape
        TensorShape([4, 8, 8, 1])
    """

    def __init__(self, alpha: float = 1.0, *, per_sample: bool = False) -> None:
        super().__init__(alpha, per_sample=per_sample)

    def _mix(self, x: Any, partner: tf.Tensor, share: tf.Tensor) -> Mixed:
        height, width = tf.unstack(tf.shape(tf.nest.flatten(x)[0])[1:3])
        rows, columns = _select_pixels(height, share), _select_pixels(width, share)
        box = rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :]
        box = tf.math.logical_xor(box, _measure_area(box) > 0.5)

        def cut(image: tf.Tensor) -> tf.Tensor:
            mixed = tf.where(box[..., tf.newaxis], tf.gather(image, partner), image)
            return tf.ensure_shape(mixed, image.shape)

        inputs = tf.nest.map_structure(cut, x)
        return Mixed(inputs, partner, 1.0 - _measure_area(box)[:, 0, 0], box)

    def _check(self, samples: list[tf.Tensor]) -> None:
        super()._check(samples)
        images = all(tensor.shape.rank == 4 for tensor in samples)
        if not images or len({tuple(tensor.shape[1:3]) for tensor in samples}) > 1:
            raise DataError(
                "CutMix needs images, shape (batch, height, width, channels), all of the same "
                f"size. Received: {', '.join(str(tuple(t.shape)) for t in samples)}. "
                "MixUp mixes samples of any shape."
            )


def _measure_area(box: tf.Tensor) -> tf.Tensor:
    """Returns the share of the image inside the box, shape (len(box), 1, 1)."""
    return tf.reduce_mean(tf.cast(box, tf.float32), axis=[1, 2], keepdims=True)


def _select_pixels(size: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns which of `size` pixels lie in the box along one side, shape (len(share), size)."""
    half = tf.cast(tf.cast(size, tf.float32) * tf.sqrt(1.0 - share), tf.int32) // 2
    center = tf.random.uniform(tf.shape(share), maxval=size, dtype=tf.int32)
    pixels = tf.range(size)
    return (pixels >= (center - half)[:, tf.newaxis]) & (pixels < (center + half)[:, tf.newaxis])
