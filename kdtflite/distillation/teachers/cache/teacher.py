"""A teacher's outputs on disk, as a teacher."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.distillation.step import CachedBatch, Observed
from kdtflite.distillation.teachers.base import Shape, Teacher, check_inputs_fit, get_input_specs
from kdtflite.distillation.teachers.cache.batches import (
    Order,
    Stored,
    make_array_batches,
    make_stream_batches,
)
from kdtflite.distillation.teachers.cache.data import ArrayData, Data, StreamData, as_data
from kdtflite.distillation.teachers.cache.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    find_damage,
    list_missing,
    read_manifest,
    read_shards,
    summarize_missing,
)
from kdtflite.distillation.teachers.cache.tables import Table
from kdtflite.distillation.teachers.cache.views import WITNESSES, Views, compute_witness
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["TeacherCache"]


class TeacherCache(Teacher):
    """The outputs of a teacher for the samples of one data set, written by `cache_teacher`.

    It only teaches on its own `batches`, which hold the stored outputs beside the samples: a
    training step then costs no more than the student alone.

    `cache_teacher` and `TeacherCache.open` return one.
    """

    own_batches = True

    def __init__(self, folder: Path, manifest: Manifest, views: Views) -> None:
        self.folder = folder
        self.manifest = manifest
        self.name = manifest.teacher
        self.outputs = manifest.outputs  # type: ignore[assignment]
        self.output_shape = tuple(manifest.output_shape)
        self._views = views
        self._tapped: tuple[str, ...] = ()
        self._checked: ArrayData | StreamData | None = None

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        teacher: Any = None,
        data: Any = None,
        augmentation: Augmentation | Callable[[Any, Any], Any] | None = None,
        views: Any = None,
        verify: bool = True,
    ) -> TeacherCache:
        """Opens a cache, and refuses one that is incomplete, damaged or stale.

        Args:
            folder: The folder of the cache.
            teacher: The teacher that it should be of; None for any.
            data: The data that it should be of, as `cache_teacher` takes them. Arrays are compared
                by their SHA-256; a tf.data.Dataset by its first samples here, and sample by sample
                as training reads it.
            augmentation: The function that made its views; the cache itself holds an Augmentation.
                Not needed where it stored the views.
            views: The views themselves, where `cache_teacher` was given them and did not store
                them.
            verify: Compare the SHA-256 of every file, which reads all of them, not only their
                sizes.

        Raises:
            DataError: There is no cache, or it is incomplete, damaged or of other data.
            ConfigurationError: The cache is of another teacher.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise DataError(_explain_incomplete(folder))
        manifest = read_manifest(folder / MANIFEST)
        if left := list_missing(manifest, manifest.shards):
            raise DataError(
                f"The teacher cache {folder} is not complete: {summarize_missing(left)} missing."
            )
        for shard in manifest.shards:
            if problem := find_damage(folder, shard, digests=verify):
                raise DataError(
                    f"The teacher cache {folder} is damaged: {problem}. Remove {MANIFEST} and call "
                    "cache_teacher again: it writes the damaged parts again."
                )
        views = _restore_views(folder, manifest, augmentation, views)
        cache = cls(folder, manifest, views)
        if teacher is not None:
            cache.check_teacher(teacher)
        if data is not None:
            cache.check_data(data)
        return cache

    @property
    def samples(self) -> int:
        """Number of samples that the teacher saw."""
        return self.manifest.samples or 0

    @property
    def views(self) -> int:
        """Number of views per sample."""
        return self.manifest.views

    @property
    def layers(self) -> dict[str, Shape]:
        """Paths of the stored layers of the teacher, and their shapes, batch first."""
        return {
            path: (None, *self.manifest.shapes[f"features-{i}"])
            for i, path in enumerate(self.manifest.layers)
        }

    def batches(
        self,
        data: Any,
        *,
        batch_size: int,
        epochs: int | None = None,
        first_epoch: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_remainder: bool = True,
        layers: Iterable[str] | None = None,
        buffer: int = 10_000,
    ) -> tf.data.Dataset:
        """Returns the batches of an epoch, or those of `first_epoch` to `epochs` in a row.

        Without `epochs`, every reading of the batches is the next epoch, as `fit` reads them:
        `fit(cache.batches(data, batch_size=32), epochs=20)`.

        Epoch e shows view e % views. Its order depends on (seed, e) alone, and for arrays is that
        of `kdtflite.data.training_batches`: a training resumed at epoch 7 sees the same batches as
        one that never stopped. With `epochs`, use it with
        `fit(steps_per_epoch=cache.steps_per_epoch(...), initial_epoch=first_epoch,
        epochs=epochs)`.

        Args:
            data: The data from which the cache was written, with any labels.
            batch_size: Samples per batch.
            epochs: The epoch to stop before; by default one epoch, the next one in every reading.
            first_epoch: The epoch to start with.
            seed: Seed of the order.
            shuffle: Whether samples are shuffled; arrays completely.
            drop_remainder: Leave out samples that do not fill a batch; other epochs have them.
            layers: Paths of the layers whose outputs the batches hold; by default all.
            buffer: Size of the shuffle buffer of a tf.data.Dataset.

        Returns:
            (CachedBatch(inputs, logits, features), y, sample_weight), the last two as in `data`.

        Raises:
            DataError: The cache was not written from these data, or they are less than a batch.
            ConfigurationError: The cache does not hold a layer.
        """
        read = self.check_data(data)
        order = Order(batch_size, first_epoch, epochs, seed, shuffle, drop_remainder, buffer)
        self.steps_per_epoch(batch_size, drop_remainder=drop_remainder)
        wanted = self.layers if layers is None else self._find_layers(layers)
        numbers = {path: i for i, path in enumerate(self.manifest.layers)}
        stored = Stored(
            self._open_table("logits"),
            {path: self._open_table(f"features-{numbers[path]}") for path in wanted},
            self._open_views(read),
        )
        if isinstance(read, StreamData):
            marks = self._open_table("rows")
            return make_stream_batches(read, self.samples, stored, marks, self._views, order)
        return make_array_batches(read, self.samples, stored, self._views, order)

    def steps_per_epoch(self, batch_size: int, *, drop_remainder: bool = True) -> int:
        """Returns the number of batches per epoch.

        Raises:
            DataError: There are too few samples for a batch.
        """
        order = Order(max(1, batch_size), 0, 1, 0, True, drop_remainder, 1)
        steps = order.count_steps(self.samples)
        if steps == 0 or batch_size < 1:
            raise DataError(
                f"Expected a batch_size from 1 to the {self.samples} samples of the teacher "
                f"cache. Received: {batch_size}. Choose another, or pass drop_remainder=False."
            )
        return steps

    def check_teacher(self, teacher: Any) -> None:
        """Raises ConfigurationError unless the cache is of `teacher`."""
        if not isinstance(teacher, Teacher):
            teacher = as_teacher(teacher, outputs=self.outputs)
        if teacher.fingerprint() != self.manifest.teacher_fingerprint:
            raise ConfigurationError(
                f"The teacher cache {self.folder} is stale: it is of another teacher "
                f"({self.name!r}) than {teacher.name!r}, or of the same one before its weights "
                "changed. Call cache_teacher(..., overwrite=True) with the new one."
            )

    def check_data(self, data: Any) -> ArrayData | StreamData:
        """Returns `data` as the cache reads it; raises DataError unless the cache is of it."""
        read = data if isinstance(data, ArrayData | StreamData) else as_data(data)
        if not self._is_checked(read):
            if reason := self._find_difference(read):
                raise DataError(
                    f"The teacher cache {self.folder} is stale: it is of other data ({reason}). "
                    "Pass the data from which it was written, or call cache_teacher(..., "
                    "overwrite=True) with the new data."
                )
            self._checked = read
        return read

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns the stored logits of a batch, shape (batch, ..., classes), float32."""
        return self.observe(x).logits

    def tap(self, layers: Iterable[str]) -> dict[str, Shape]:
        """Makes `observe` give the outputs of `layers` too, and returns their shapes by path.

        Raises:
            ConfigurationError: The cache does not hold a layer.
        """
        self._tapped = tuple(dict.fromkeys(layers))
        return self._find_layers(self._tapped)

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:  # noqa: D102
        del recording
        if not isinstance(x, CachedBatch):
            raise ConfigurationError(
                "A teacher cache only teaches on its own batches. Expected the batches of "
                f"cache.batches(data, batch_size=...). Received: plain samples ({_describe(x)}). "
                "Train on cache.batches(...), or pass the teacher itself to Distiller()."
            )
        if left := [path for path in self._tapped if path not in x.features]:
            raise ConfigurationError(
                f"The losses read the teacher's layers {', '.join(left)}. Received: batches "
                f"without them. Pass layers={list(self._tapped)} to cache.batches()."
            )
        return Observed(
            tf.stop_gradient(tf.cast(x.logits, tf.float32)),
            {p: tf.stop_gradient(tf.cast(x.features[p], tf.float32)) for p in self._tapped},
        )

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless the student takes the samples that the teacher saw."""
        seen = {name: tf.TensorSpec(shape, dtype) for name, dtype, shape in self.manifest.inputs}
        takes = get_input_specs(student)
        flat = tf.nest.flatten(takes)
        named = (
            takes if isinstance(takes, dict) else dict(zip(student.input_names, flat, strict=True))
        )
        specs = [tf.TensorSpec(shape, dtype) for _, dtype, shape in self.manifest.inputs]
        if set(seen) == set(named):  # a dict, in an order of its own
            flat, specs = list(named.values()), [seen[name] for name in named]
        if [_strip_shape(spec) for spec in specs] != [_strip_shape(spec) for spec in flat]:
            check_inputs_fit(flat, specs, preprocessed=False)

    def fingerprint(self) -> str:  # noqa: D102
        return self.manifest.fingerprint()

    def _find_layers(self, layers: Iterable[str]) -> dict[str, Shape]:
        layers, held = list(layers), self.layers
        if unknown := [path for path in layers if path not in held]:
            raise ConfigurationError(
                f"The teacher cache {self.folder} does not hold the outputs of "
                f"{', '.join(unknown)}. It holds: {', '.join(held) or 'logits alone'}. Pass "
                "layers= to cache_teacher to keep them."
            )
        return {path: held[path] for path in layers}

    def _open_table(self, name: str) -> Table:
        shards = self.manifest.shards
        paths = [self.folder / shard.folder / f"{name}.npy" for shard in shards]
        return Table(paths, [shard.samples for shard in shards])

    def _open_views(self, read: ArrayData | StreamData) -> Any:
        if not self.manifest.stored_views:
            return None
        tables = [self._open_table(f"inputs-{i}") for i in range(len(self.manifest.inputs))]
        return tf.nest.pack_sequence_as(read.specs, tables)

    def _is_checked(self, read: Data) -> bool:
        """Returns whether these very arrays were compared before, since a digest takes time."""
        before = self._checked
        if isinstance(before, StreamData) and isinstance(read, StreamData):
            return before.dataset is read.dataset
        if not isinstance(before, ArrayData) or not isinstance(read, ArrayData):
            return False
        old, new = tf.nest.flatten(before.x), tf.nest.flatten(read.x)
        return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))

    def _find_difference(self, read: Data) -> str | None:
        manifest = self.manifest
        if read.kind != manifest.data:
            return f"{manifest.data}, not {read.kind}"
        if read.samples is not None and read.samples != manifest.samples:
            return f"{manifest.samples} samples, not {read.samples}"
        if read.fingerprint is not None and read.fingerprint != manifest.data_fingerprint:
            return "other values, shapes or dtypes in the samples"
        if not self._views.known:
            return None
        now = compute_witness(self._views, read.take(WITNESSES))
        if np.shape(now) != np.shape(manifest.witness) or not np.allclose(
            now, manifest.witness, atol=1e-4
        ):
            return "the first samples, or their augmented views, differ"
        return None


def _restore_views(folder: Path, manifest: Manifest, augmentation: Any, views: Any) -> Views:
    """Returns the views of a cache: what it holds, or the function or arrays that made them."""
    stored = manifest.augmentation or {}
    if stored and not {"function", "arrays"} & set(stored):
        augmentation = Augmentation(**stored)
    needed = "views" if "arrays" in stored else "augmentation"
    given = views if "arrays" in stored else augmentation
    if stored and given is None:
        if manifest.stored_views:
            return Views(None, views=manifest.views, seed=manifest.seed, known=False)
        made_by = (
            "given as arrays"
            if needed == "views"
            else f"made by a function, {stored.get('function')}"
        )
        raise ConfigurationError(
            f"The views of the teacher cache {folder} were {made_by}. Expected the same as "
            f"{needed}=. Received: None."
        )
    if "arrays" not in stored:
        return Views(augmentation, views=manifest.views, seed=manifest.seed)
    restored = Views(None, views=views, seed=manifest.seed)
    if restored.describe() != stored:
        raise DataError(
            f"The teacher cache {folder} is stale: it is of other views. Pass those from which it "
            "was written, or call cache_teacher(..., overwrite=True) with the new ones."
        )
    return restored


def _explain_incomplete(folder: Path) -> str:
    if not (folder / PLAN).is_file():
        return (
            f"Expected a teacher cache. Received: {folder}, which is not one. Call cache_teacher."
        )
    left = list_missing(read_manifest(folder / PLAN), read_shards(folder))
    what = f"{summarize_missing(left)} missing" if left else "the data were not read to the end"
    return (
        f"The teacher cache {folder} is not complete: {what}. Call cache_teacher again with the "
        "same arguments: it resumes from there."
    )


def _describe(x: Any) -> str:
    return ", ".join(str(getattr(leaf, "shape", type(leaf))) for leaf in tf.nest.flatten(x))


def _strip_shape(spec: Any) -> list[int | None]:
    """Returns a sample's shape without trailing ones: Keras adds a missing last axis of 1."""
    shape = list(spec.shape[1:])
    while shape and shape[-1] == 1:
        shape.pop()
    return shape
