"""Mixed samples: MixUp and CutMix, the same for the student and the teacher."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from kdtflite.distillation.step import Taught
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["CutMix", "MixUp", "Mixed", "Mixing"]


@dataclass(frozen=True)
class Mixed:
    """A mixed batch.

    Attributes:
        inputs: The mixed samples.
        partner: Row of the sample that each was mixed with, shape (batch,), int32.
        share: Share of the sample's own label, shape (batch,), from 0.5 to 1.
    """

    inputs: Any
    partner: tf.Tensor
    share: tf.Tensor

    def partners(self, values: Any) -> Any:
        """Returns each sample's partner's values (labels), or None for None."""
        if values is None:
            return None
        return tf.nest.map_structure(lambda v: tf.gather(v, self.partner), values)

    def mix(self, own: tf.Tensor, partners: tf.Tensor) -> tf.Tensor:
        """Returns losses on the own and the partner's label in the samples' shares."""
        share = _to_rank(self.share, own.shape.rank)
        return share * own + (1.0 - share) * partners


class Mixing(abc.ABC):
    """Mixes every sample of a batch with another one, for the student and the teacher alike.

    Teacher and student are given the very same mix, so that the soft targets belong to what the
    student sees (Beyer et al., "a good teacher is patient and consistent", arXiv 2106.05237);
    the hard-label loss is that of both labels in their shares. A mix of more than half of another
    sample is the mix of that sample: own and partner then change places, which changes nothing
    but whose row it is, and keeps a sample's weight and its metrics with what is most of it.

    Random numbers are TensorFlow's own: `keras.utils.set_random_seed` makes them repeatable.

    Args:
        alpha: λ is drawn from Beta(alpha, alpha); the greater, the nearer to one half.
        per_sample: Draw a λ for each sample; by default one a batch, as the papers' authors do.

    Raises:
        ConfigurationError: alpha is no positive number.
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
            x: Samples, shape (batch, ...), floating, or a structure of such, mixed alike.

        Raises:
            ConfigurationError: Samples that come with a teacher's cached outputs.
            DataError: Samples that cannot be mixed, as integers.
        """
        if isinstance(x, Taught):
            raise ConfigurationError(
                f"{type(self).__name__} cannot be used with cached teacher outputs: they belong "
                "to the samples as they were cached, not to mixed ones. Leave out mixing=, or "
                "teach with the model itself."
            )
        x = tf.nest.map_structure(tf.convert_to_tensor, x)
        self._check(tf.nest.flatten(x))
        batch = tf.shape(tf.nest.flatten(x)[0])[0]
        partner = tf.random.shuffle(tf.range(batch))
        share = self._draw(batch if self.per_sample else 1)
        inputs, share = self._mix(x, partner, share)
        return Mixed(inputs, partner, tf.broadcast_to(share, [batch]))

    @abc.abstractmethod
    def _mix(self, x: Any, partner: tf.Tensor, share: tf.Tensor) -> tuple[Any, tf.Tensor]:
        """Returns the mixed samples, and the own samples' shares in them.

        Args:
            x: Samples, shape (batch, ...).
            partner: Row of each sample's partner, shape (batch,).
            share: λ as it was drawn, shape (batch,) or (1,).
        """

    def _check(self, samples: list[tf.Tensor]) -> None:
        for tensor in samples:
            if not tensor.dtype.is_floating:
                raise DataError(
                    f"{type(self).__name__} mixes samples of a floating dtype. Received: "
                    f"{tensor.dtype.name}, shape {tuple(tensor.shape)}. Scale images to floats "
                    "first; numbers that stand for something (tokens) have no mean."
                )

    def _draw(self, count: tf.Tensor | int) -> tf.Tensor:
        """Returns λ, shape (count,), float32."""
        # λ = G / (G + G') of two gammas; their logarithms, as both underflow for a small alpha:
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
        per_sample: Draw a λ for each sample instead of one a batch.

    Raises:
        ConfigurationError: alpha is no positive number.

    Example:
        >>> Distiller(student, teacher, mixing=MixUp(alpha=0.2))
    """

    def __init__(self, alpha: float = 0.2, *, per_sample: bool = False) -> None:
        super().__init__(alpha, per_sample=per_sample)

    def _mix(self, x: Any, partner: tf.Tensor, share: tf.Tensor) -> tuple[Any, tf.Tensor]:
        share = tf.maximum(share, 1.0 - share)

        def mean(tensor: tf.Tensor) -> tf.Tensor:
            own = _to_rank(tf.cast(share, tensor.dtype), tensor.shape.rank)
            return own * tensor + (1 - own) * tf.gather(tensor, partner)

        return tf.nest.map_structure(mean, x), share


class CutMix(Mixing):
    """A box of every image is cut out of another one (Yun et al., arXiv 1905.04899).

        x̃ = M ⊙ x + (1 - M) ⊙ x_partner,   L_hard = λ L(y) + (1 - λ) L(y_partner)

    M is 0 in a box of sides √(1 - λ) of the image's, its centre anywhere in the image, and λ is
    in the end the share of the image outside the box, which may stick out of it. Where the box
    is more than half of the image, it is what stays, and the rest is of the other one.

    Args:
        alpha: α of λ ~ Beta(α, α); 1, as in the paper, draws λ evenly.
        per_sample: Draw a λ and a box for each sample instead of one a batch.

    Raises:
        ConfigurationError: alpha is no positive number.

    Example:
        >>> Distiller(student, teacher, mixing=CutMix(alpha=1.0))
    """

    def __init__(self, alpha: float = 1.0, *, per_sample: bool = False) -> None:
        super().__init__(alpha, per_sample=per_sample)

    def _mix(self, x: Any, partner: tf.Tensor, share: tf.Tensor) -> tuple[Any, tf.Tensor]:
        height, width = tf.unstack(tf.shape(tf.nest.flatten(x)[0])[1:3])
        rows, columns = _stretch(height, share), _stretch(width, share)
        box = rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :]
        box = tf.math.logical_xor(box, _area(box) > 0.5)

        def cut(image: tf.Tensor) -> tf.Tensor:
            mixed = tf.where(box[..., tf.newaxis], tf.gather(image, partner), image)
            return tf.ensure_shape(mixed, image.shape)

        return tf.nest.map_structure(cut, x), 1.0 - _area(box)[:, 0, 0]

    def _check(self, samples: list[tf.Tensor]) -> None:
        super()._check(samples)
        images = all(tensor.shape.rank == 4 for tensor in samples)
        if not images or len({tuple(tensor.shape[1:3]) for tensor in samples}) > 1:
            raise DataError(
                "CutMix cuts boxes out of images, shape (batch, height, width, channels), all of "
                f"one size. Received: {', '.join(str(tuple(t.shape)) for t in samples)}. "
                "MixUp mixes samples of any shape."
            )


def _area(box: tf.Tensor) -> tf.Tensor:
    """Returns the share of the image that is in the box, shape (len(box), 1, 1)."""
    return tf.reduce_mean(tf.cast(box, tf.float32), axis=[1, 2], keepdims=True)


def _stretch(size: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns which of `size` pixels lie in the box, along one side, shape (len(share), size)."""
    half = tf.cast(tf.cast(size, tf.float32) * tf.sqrt(1.0 - share), tf.int32) // 2
    centre = tf.random.uniform(tf.shape(share), maxval=size, dtype=tf.int32)
    pixels = tf.range(size)
    return (pixels >= (centre - half)[:, tf.newaxis]) & (pixels < (centre + half)[:, tf.newaxis])


def _to_rank(share: tf.Tensor, rank: int) -> tf.Tensor:
    """Returns `share`, shape (batch,), with axes of 1 up to `rank`."""
    return tf.reshape(share, [-1] + [1] * (rank - 1))
