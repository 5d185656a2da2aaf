"""Random geometry for training images, a pure function of the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """How far training images are moved, each by its own random amount.

    Attributes:
        shift: Largest shift in pixels, each way along each axis.
        rotation: Largest rotation in degrees, each way.
        zoom: Largest change of size, as a fraction.
        flip: Mirror every second image, left to right.
    """

    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    flip: bool = False

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return bool(self.shift or self.rotation or self.zoom or self.flip)

    def __call__(self, images: Any, seed: Any) -> tf.Tensor:
        """Returns the images moved; the same seed moves them the same way.

        Args:
            images: Shape (batch, height, width, channels), float32. Pixels from outside are 0.
            seed: Two integers, shape (2,).
        """
        if not self.active:
            return images
        batch = tf.shape(images)[0]
        return self.move(
            images, tf.random.stateless_uniform((5, batch), seed, minval=-1.0, maxval=1.0)
        )

    def move(self, images: Any, u: tf.Tensor) -> tf.Tensor:
        """Returns the images moved, each by its own numbers, whatever batch it stands in.

        Args:
            images: Shape (batch, height, width, channels), float32. Pixels from outside are 0.
            u: Numbers from -1 to 1, shape (5, batch): how much of the largest rotation, zoom, shift
                to the left and shift up each image gets; below 0 in the last row mirrors it.
                With float64 an image is moved alike in any batch, to the bit; float32's sine and
                cosine are rounded otherwise at the end of a batch than before.
        """
        size = tf.shape(images)
        batch, height, width = size[0], size[1], size[2]
        angle = u[0] * (self.rotation * math.pi / 180)
        zoom = 1.0 + u[1] * self.zoom
        mirror = tf.ones([batch], u.dtype)
        if self.flip:
            mirror = tf.where(u[4] < 0, -mirror, mirror)
        cosine, sine = tf.cos(angle) / zoom, tf.sin(angle) / zoom
        # The kernel wants, for each output pixel, where it comes from: the affine map
        # (x, y) -> (a x + b y + c, d x + e y + f), here about the image's centre.
        centre_x = tf.cast(width - 1, u.dtype) / 2
        centre_y = tf.cast(height - 1, u.dtype) / 2
        a, b, d, e = cosine * mirror, -sine, sine * mirror, cosine
        c = centre_x - a * centre_x - b * centre_y + u[2] * self.shift
        f = centre_y - d * centre_x - e * centre_y + u[3] * self.shift
        zero = tf.zeros([batch], u.dtype)
        transforms = tf.stack([a, b, c, d, e, f, zero, zero], axis=1)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.cast(transforms, tf.float32),
            output_shape=size[1:3],
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
            fill_value=0.0,
        )
