"""Augmented views of samples, pure functions of the seed, the view and the sample's row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.distillation.teachers.cache.data import to_fit_dtype
from kdtflite.distillation.teachers.cache.tables import Table
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["WITNESSES", "Views", "compute_witness"]

# Number of the first samples whose views identify an augmentation.
WITNESSES = 8


class Views:
    """Augments sample i in view v in the same way every time, whatever its batch.

    Thus the teacher has seen exactly what the student is shown (Beyer et al., arXiv 2106.05237;
    Shen & Xing, arXiv 2112.01528).

    Args:
        augmentation: An Augmentation of images; or a function `(sample, seed) -> sample` of
            TensorFlow operations, seed shape (2,), int64; or None.
        views: Number of views, or the views themselves: arrays in the samples' structure, shape
            (views, samples, ...).
        seed: Seed of the augmentations.
        known: False where the views can only be read from the cache that stored them.

    Raises:
        ConfigurationError: The views would all be the same, or are given twice.
        DataError: Views of different numbers.
    """

    def __init__(
        self,
        augmentation: Augmentation | Callable[[Any, Any], Any] | None,
        *,
        views: Any,
        seed: int,
        known: bool = True,
    ) -> None:
        if isinstance(augmentation, Augmentation) and not augmentation.active:
            augmentation = None
        self.known = known
        self.arrays: Any = None
        if not isinstance(views, int | np.integer):
            if augmentation is not None:
                raise ConfigurationError(
                    "Expected views= as arrays, or an augmentation that makes them. Received: "
                    "both. Leave out augmentation=."
                )
            self.arrays, views = _check_arrays(views)
        elif known and (views < 1 or (views > 1 and augmentation is None)):
            raise ConfigurationError(
                "Expected views=1, or an augmentation that makes the views differ. Received: "
                f"views={views}, augmentation={augmentation!r}. Pass for example "
                "augmentation=Augmentation(shift=2, flip=True), or the views themselves as views=."
            )
        self.augmentation = augmentation
        self.views = int(views)
        self.seed = seed

    def __call__(self, x: Any, rows: tf.Tensor, view: Any) -> Any:
        """Returns a batch of samples as they look in `view`.

        Args:
            x: A tensor (batch, ...), or a dict or tuple of them.
            rows: Row of each sample in the data, shape (batch,), int64.
            view: From 0, a scalar int64.
        """
        if self.arrays is not None:
            at = tf.cast(view, tf.int64) * self._count() + tf.cast(rows, tf.int64)
            return tf.nest.map_structure(lambda table: table(at), self._tables)
        if self.augmentation is None:
            return x
        view = tf.convert_to_tensor(view, tf.int64)
        # On the CPU, where tf.data runs: other devices round differently.
        with tf.device("CPU"):
            if isinstance(self.augmentation, Augmentation):
                return self.augmentation.move(x, self._hash_to_uniform(rows, view))
            return _map_samples(self.augmentation, x, rows, view + self.seed * 1_000_003)

    def check(self, specs: Any, samples: int | None = None) -> None:
        """Raises DataError unless the augmentation takes samples of `specs`.

        Args:
            specs: tf.TensorSpec of a batch of samples, in their structure.
            samples: Their number; None for a tf.data.Dataset that was not read yet.
        """
        if self.arrays is not None and samples != self._count():
            given = "an unknown number" if samples is None else str(samples)
            raise DataError(
                "Expected views of the samples in arrays, shape (views, samples, ...). Received: "
                f"views of {self._count()} samples, and {given} of samples."
            )
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
        """Returns the augmentation as JSON can hold it."""
        if isinstance(self.augmentation, Augmentation):
            return asdict(self.augmentation)
        if self.arrays is not None:
            return {"arrays": self._hash_arrays()}
        if self.augmentation is None:
            return None
        function = self.augmentation
        module, name = getattr(function, "__module__", "?"), type(function).__qualname__
        return {"function": f"{module}.{getattr(function, '__qualname__', name)}"}

    def _count(self) -> int:
        """Returns the number of samples of which there are views in arrays."""
        return int(tf.nest.flatten(self.arrays)[0].shape[1])

    @cached_property
    def _tables(self) -> Any:
        def make(array: np.ndarray) -> Table:
            flat = array.reshape(-1, *array.shape[2:])
            return Table([flat], [len(flat)], to_fit_dtype(flat[:1]).dtype)

        with tf.init_scope():  # not of the graph that asks for them first
            return tf.nest.map_structure(make, self.arrays)

    def _hash_arrays(self) -> str:
        digest = hashlib.sha256()
        for array in tf.nest.flatten(self.arrays):
            digest.update(f"{array.shape}{array.dtype}".encode())
            for view in array:
                digest.update(np.ascontiguousarray(view).data)
        return digest.hexdigest()

    def _hash_to_uniform(self, rows: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
        """Returns numbers from -1 to 1, shape (5, batch), float64.

        Each is a hash of (seed, view, row, which of the five). Unlike the numbers of a random
        generator, which depend on the shape drawn, it is the same for a row in any batch and on any
        machine.
        """
        which = tf.range(5, dtype=tf.int64)[:, tf.newaxis]
        row = tf.cast(rows, tf.int64)[tf.newaxis, :]
        one = tf.ones_like(which * row)
        keys = tf.stack([one * self.seed, one * view, one * row, one * which], axis=-1)
        hashes = tf.raw_ops.Fingerprint(data=tf.reshape(keys, [-1, 4]), method="farmhash64")
        low = tf.bitcast(tf.reshape(hashes, [-1, 2, 4]), tf.uint32)[:, 0]
        return tf.reshape(tf.cast(low, tf.float64) * 2.0**-31 - 1.0, [5, -1])


def _check_arrays(views: Any) -> tuple[Any, int]:
    """Returns views in arrays, and their number."""
    structure = views if isinstance(views, dict | tuple) else np.asarray(views)
    arrays = tf.nest.map_structure(np.asarray, structure)
    leaves = tf.nest.flatten(arrays)
    sizes = {leaf.shape[:2] for leaf in leaves}
    if len(sizes) != 1 or any(leaf.dtype.kind not in "biuf" or leaf.ndim < 2 for leaf in leaves):
        shapes = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in leaves)
        raise DataError(
            "Expected views= as a number, or as arrays of numbers, shape (views, samples, ...). "
            f"Received: {shapes or 'none'}."
        )
    return arrays, leaves[0].shape[0]


def compute_witness(views: Views, x: Any) -> list[list[float]]:
    """Returns one number per view and sample that identifies the augmentation.

    Args:
        views: The views.
        x: The first samples of the data.
    """
    count = len(tf.nest.flatten(x)[0])
    rows = tf.range(count, dtype=tf.int64)
    view_of = tf.function(views, autograph=False)
    return [_identify(view_of(x, rows, tf.constant(view, tf.int64))) for view in range(views.views)]


def _identify(x: Any) -> list[float]:
    total, scale = 0.0, 1e-30
    for tensor in tf.nest.flatten(x):
        if tensor.dtype == tf.string:
            continue
        flat = tensor.numpy().reshape(len(tensor), -1).astype(np.float64)
        # A plain sum would not notice pixels that change places.
        total = total + (flat * np.cos(np.arange(flat.shape[1]))).sum(axis=1)
        scale = scale + np.abs(flat).sum(axis=1)
    return np.ravel(total / scale).tolist()


def _map_samples(
    function: Callable[[Any, Any], Any], x: Any, rows: tf.Tensor, key: tf.Tensor
) -> Any:
    """Applies `function` to each sample with the seed (key, row)."""
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
