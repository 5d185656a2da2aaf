"""Augmented views of samples, each a pure function of the seed, the view and the sample's row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["Views", "witness"]


class Views:
    """Gives sample i of view v the same augmentation every time, whatever batch it stands in.

    The teacher has then seen exactly what the student is shown (Beyer et al., arXiv 2106.05237;
    Shen & Xing, arXiv 2112.01528).

    Args:
        augmentation: An Augmentation of images; or a function `(sample, seed) -> sample` of
            TensorFlow operations, seed shape (2,), int64; or None.
        views: How many views there are.
        seed: Chooses among the augmentations.

    Raises:
        ConfigurationError: Several views that would all be alike.
    """

    def __init__(
        self,
        augmentation: Augmentation | Callable[[Any, Any], Any] | None,
        *,
        views: int,
        seed: int,
    ) -> None:
        if isinstance(augmentation, Augmentation) and not augmentation.active:
            augmentation = None
        if views < 1 or (views > 1 and augmentation is None):
            raise ConfigurationError(
                "Expected views=1, or an augmentation that makes the views differ. Received: "
                f"views={views}, augmentation={augmentation!r}. Pass for example "
                "augmentation=Augmentation(shift=2, flip=True)."
            )
        self.augmentation = augmentation
        self.views = views
        self.seed = seed

    def __call__(self, x: Any, rows: tf.Tensor, view: Any) -> Any:
        """Returns a batch of samples as they look in `view`.

        Args:
            x: A tensor (batch, ...), or a dict or tuple of them.
            rows: Row of each sample in the data, shape (batch,), int64.
            view: From 0, a scalar int64.
        """
        if self.augmentation is None:
            return x
        view = tf.convert_to_tensor(view, tf.int64)
        # On the CPU, where tf.data runs: another device rounds otherwise.
        with tf.device("CPU"):
            if isinstance(self.augmentation, Augmentation):
                return self.augmentation.move(x, self._uniform(rows, view))
            return _mapped(self.augmentation, x, rows, view + self.seed * 1_000_003)

    def check(self, specs: Any) -> None:
        """Raises DataError unless the augmentation takes samples of `specs`.

        Args:
            specs: tf.TensorSpec of a batch of samples, in their structure.
        """
        if not isinstance(self.augmentation, Augmentation):
            return
        image = isinstance(specs, tf.TensorSpec) and specs.shape.rank == 4
        if not image or not specs.dtype.is_floating:
            raise DataError(
                "An Augmentation moves images. Expected floating samples of shape (samples, "
                f"height, width, channels). Received: {tf.nest.flatten(specs)}. Pass a function "
                "(sample, seed) -> sample as augmentation= for other samples."
            )

    def describe(self) -> dict[str, Any] | None:
        """Returns what JSON can hold of the augmentation."""
        if isinstance(self.augmentation, Augmentation):
            return asdict(self.augmentation)
        if self.augmentation is None:
            return None
        function = self.augmentation
        module, name = getattr(function, "__module__", "?"), type(function).__qualname__
        return {"function": f"{module}.{getattr(function, '__qualname__', name)}"}

    def _uniform(self, rows: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        """Returns numbers from -1 to 1, shape (5, batch), float64.

        Each is a hash of (seed, view, row, which of the five).

        A random generator's numbers depend on the shape that is drawn; a hash is the same for a
        row in any batch, on any machine.
        """
        which = tf.range(5, dtype=tf.int64)[:, tf.newaxis]
        row = tf.cast(rows, tf.int64)[tf.newaxis, :]
        one = tf.ones_like(which * row)
        keys = tf.stack([one * self.seed, one * view, one * row, one * which], axis=-1)
        hashes = tf.raw_ops.Fingerprint(data=tf.reshape(keys, [-1, 4]), method="farmhash64")
        low = tf.bitcast(tf.reshape(hashes, [-1, 2, 4]), tf.uint32)[:, 0]
        return tf.reshape(tf.cast(low, tf.float64) * 2.0**-31 - 1.0, [5, -1])


def witness(views: Views, x: Any) -> list[list[float]]:
    """Returns a number for each of the first samples in each view, by which views are told apart.

    Args:
        views: The views.
        x: The first samples of the data.
    """
    count = len(tf.nest.flatten(x)[0])
    rows = tf.range(count, dtype=tf.int64)
    view_of = tf.function(views, autograph=False)
    return [_numbers(view_of(x, rows, tf.constant(view, tf.int64))) for view in range(views.views)]


def _numbers(x: Any) -> list[float]:
    total, scale = 0.0, 1e-30
    for tensor in tf.nest.flatten(x):
        if tensor.dtype == tf.string:
            continue
        flat = tensor.numpy().reshape(len(tensor), -1).astype(np.float64)
        # A sum alone would not see pixels that change places.
        total = total + (flat * np.cos(np.arange(flat.shape[1]))).sum(axis=1)
        scale = scale + np.abs(flat).sum(axis=1)
    return np.ravel(total / scale).tolist()


def _mapped(function: Callable[[Any, Any], Any], x: Any, rows: tf.Tensor, key: tf.Tensor) -> Any:
    """Returns what `function` makes of each sample with the seed (key, row)."""
    rows = tf.cast(rows, tf.int64)
    seeds = tf.stack([tf.ones_like(rows) * key, rows], axis=1)
    samples = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), x)
    augment = tf.function(function)
    try:
        traced = augment.get_concrete_function(samples, tf.TensorSpec((2,), tf.int64))
    except Exception as error:  # the user's function may raise anything
        raise ConfigurationError(
            "augmentation= does not run on a sample inside a TensorFlow graph. Expected a "
            f"function (sample, seed) -> sample. {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    given = tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype), traced.structured_outputs
    )
    return tf.map_fn(lambda args: augment(*args), (x, seeds), given)
