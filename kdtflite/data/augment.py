"""Random geometry for training images, a pure function of the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from kdtflite.arguments import check_construction
from kdtflite.errors import ConfigurationError

__all__ = ["Augmentation"]


@check_construction
@dataclass(frozen=True)
class Augmentation:
    """Random shifts, rotations, zooms and flips, another one for each training image.

    Attributes:
        shift: Largest shift in pixels, each way along each axis; fractions of a pixel, too, for
            which pixels are interpolated.
        rotation: Largest rotation in degrees, each way.
        zoom: Largest change of size, as a fraction.
        flip: Mirror about every second image, left to right.
        crop: Pixels of padding around the image, out of which a part of its own size is cut
            (He et al., arXiv 1512.03385, section 4.2): a shift by whole pixels, which are not
            interpolated. In place of `shift`.

    Raises:
        ConfigurationError: Both `shift` and `crop`, a crop that is no whole number from 0, or
            another size that is below 0 or not finite.

    Example:
        >>> import numpy as np
        >>> from kdtflite.data import Augmentation
        >>> images = np.ones((2, 8, 8, 1), "float32")
        >>> Augmentation(shift=2, flip=True)(images, seed=[1, 2]).shape
        TensorShape([2, 8, 8, 1])
    """

    shift: float = 0.0
    rotation: float = 0.0
    zoom: float = 0.0
    flip: bool = False
    crop: int = 0

    def __post_init__(self) -> None:
        for name, size in (("shift", self.shift), ("rotation", self.rotation), ("zoom", self.zoom)):
            if not 0 <= size < math.inf:
                raise ConfigurationError(f"Expected {name} to be 0 or more. Received: {size!r}.")
        if self.crop < 0 or (self.crop and self.shift):
            raise ConfigurationError(
                "Expected a crop of whole pixels, from 0, in place of a shift. Received: "
                f"crop={self.crop}, shift={self.shift}."
            )

    @property
    def active(self) -> bool:
        """Whether any image is changed."""
        return bool(self.shift or self.crop or self.rotation or self.zoom or self.flip)

    def __call__(self, images: Any, seed: Any) -> tf.Tensor:
        """Returns the moved images; the same seed moves them the same way.

        Args:
            images: Shape (batch, height, width, channels), float32. Pixels outside an image are 0.
            seed: Two integers, shape (2,).
        """
        if not self.active:
            return images
        batch = tf.shape(images)[0]
        return self.move(
            images, tf.random.stateless_uniform((5, batch), seed, minval=-1.0, maxval=1.0)
        )

    def move(self, images: Any, u: tf.Tensor) -> tf.Tensor:
        """Returns the images, each moved by its own numbers.

        Args:
            images: Shape (batch, height, width, channels), float32. Pixels outside an image are 0.
            u: Numbers from -1 to 1, shape (5, batch): the fraction of the largest rotation, zoom,
                shift to the left and shift up that each image gets; a negative number in the last
                row mirrors it. With float64 the result does not depend on the batch, to the bit;
                float32's sine and cosine round differently at the end of a batch.
        """
        size = tf.shape(images)
        batch, height, width = size[0], size[1], size[2]
        angle = u[0] * (self.rotation * math.pi / 180)
        zoom = 1.0 + u[1] * self.zoom
        mirror = tf.ones([batch], u.dtype)
        if self.flip:
            mirror = tf.where(u[4] < 0, -mirror, mirror)
        cosine, sine = tf.cos(angle) / zoom, tf.sin(angle) / zoom
        # The kernel wants to know where each output pixel comes from: the affine map
        # (x, y) -> (a x + b y + c, d x + e y + f), here about the center of the image.
        center_x = tf.cast(width - 1, u.dtype) / 2
        center_y = tf.cast(height - 1, u.dtype) / 2
        a, b, d, e = cosine * mirror, -sine, sine * mirror, cosine
        c = center_x - a * center_x - b * center_y + self._draw_shift(u[2])
        f = center_y - d * center_x - e * center_y + self._draw_shift(u[3])
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

    def _draw_shift(self, u: tf.Tensor) -> tf.Tensor:
        if not self.crop:
            return u * self.shift
        # Each of the whole numbers from -crop to crop is as likely as the others.
        places = tf.floor((u + 1) / 2 * (2 * self.crop + 1)) - self.crop
        return tf.minimum(places, tf.cast(self.crop, u.dtype))
