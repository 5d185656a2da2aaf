"""A teacher's outputs, kept on disk, as a teacher."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.distillation.step import Observed, Taught
from kdtflite.distillation.teachers.base import Shape, Teacher, check_fits, input_specs
from kdtflite.distillation.teachers.cache.batches import (
    Order,
    Stored,
    array_batches,
    stream_batches,
)
from kdtflite.distillation.teachers.cache.data import ArrayData, Data, StreamData, as_data
from kdtflite.distillation.teachers.cache.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    damage,
    missing,
    read_manifest,
    read_shards,
)
from kdtflite.distillation.teachers.cache.tables import Table
from kdtflite.distillation.teachers.cache.views import Views, witness
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["TeacherCache"]

_WITNESSES = 8


class TeacherCache(Teacher):
    """What a teacher gave for the samples of one data set, written by `cache_teacher`.

    It teaches on its own `batches` alone, which hold the stored outputs beside the samples: a
    training step then costs what the student alone costs.

    Made by `cache_teacher` or `TeacherCache.open`.
    """

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
        verify: bool = True,
    ) -> TeacherCache:
        """Opens a cache, and refuses one that is incomplete, damaged or stale.

        Args:
            folder: Where it was written.
            teacher: What it should be of; None trusts it.
            data: What it should be of, as `cache_teacher` takes it. Arrays are compared by their
                SHA-256; of a tf.data.Dataset only the first samples here, and every sample as
                training reads it.
            augmentation: The function that made its views; an Augmentation is in the cache itself.
            verify: Compare the SHA-256 of every file, which reads all of them; else their sizes.

        Raises:
            DataError: No cache, or one that is incomplete, damaged or of other data.
            ConfigurationError: A cache of another teacher.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise DataError(_incomplete(folder))
        manifest = read_manifest(folder / MANIFEST)
        if left := missing(manifest, manifest.shards):
            raise DataError(f"The teacher cache {folder} is not complete: {_some(left)} missing.")
        for shard in manifest.shards:
            if problem := damage(folder, shard, digests=verify):
                raise DataError(
                    f"The teacher cache {folder} is damaged: {problem}. Remove {MANIFEST} and call "
                    "cache_teacher again: it writes what is not whole."
                )
        stored = manifest.augmentation
        if stored is not None and "function" not in stored:
            augmentation = Augmentation(**stored)
        if augmentation is None and stored is not None:
            raise ConfigurationError(
                f"The views of the teacher cache {folder} were made by a function, "
                f"{stored['function']}. Expected it as augmentation=. Received: none."
            )
        views = Views(augmentation, views=manifest.views, seed=manifest.seed)
        cache = cls(folder, manifest, views)
        if teacher is not None:
            cache.check_teacher(teacher)
        if data is not None:
            cache.check_data(data)
        return cache

    @property
    def samples(self) -> int:
        """How many samples the teacher saw."""
        return self.manifest.samples or 0

    @property
    def views(self) -> int:
        """In how many views it saw each of them."""
        return self.manifest.views

    @property
    def layers(self) -> dict[str, Shape]:
        """Paths of the teacher's layers that are held, and their shapes, batch first."""
        return {
            path: (None, *self.manifest.shapes[f"features-{i}"])
            for i, path in enumerate(self.manifest.layers)
        }

    def batches(
        self,
        data: Any,
        *,
        batch_size: int,
        epochs: int = 1,
        first_epoch: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_remainder: bool = True,
        layers: Iterable[str] | None = None,
        buffer: int = 10_000,
    ) -> tf.data.Dataset:
        """Returns the batches of epochs `first_epoch` to `epochs`, one epoch after the other.

        Epoch e shows view e % views. Its order is a function of (seed, e) alone, for arrays that
        of `kdtflite.data.training_batches`: training resumed at epoch 7 sees what it would have
        seen had it never stopped. Use it with `fit(steps_per_epoch=cache.steps_an_epoch(...),
        initial_epoch=first_epoch, epochs=epochs)`.

        Args:
            data: What the cache was written of, with the labels; they may be others.
            batch_size: Samples a batch.
            epochs: The epoch to stop before.
            first_epoch: The epoch to begin with.
            seed: Of the order.
            shuffle: Whether samples are shuffled; arrays wholly.
            drop_remainder: Leave out what does not fill a batch; another epoch's order has it.
            layers: Paths of the layers whose outputs the batches hold; by default all.
            buffer: Samples of a tf.data.Dataset that are shuffled at a time.

        Returns:
            (Taught(inputs, logits, features), y, sample_weight), the last two as `data` has them.

        Raises:
            DataError: Data of which the cache was not written, or less than a batch.
            ConfigurationError: A layer that it does not hold.
        """
        read = self.check_data(data)
        order = Order(batch_size, first_epoch, epochs, seed, shuffle, drop_remainder, buffer)
        self.steps_an_epoch(batch_size, drop_remainder=drop_remainder)
        wanted = self.layers if layers is None else self._held(layers)
        numbers = {path: i for i, path in enumerate(self.manifest.layers)}
        stored = Stored(
            self._table("logits"),
            {path: self._table(f"features-{numbers[path]}") for path in wanted},
        )
        if isinstance(read, StreamData):
            marks = self._table("rows")
            return stream_batches(read, self.samples, stored, marks, self._views, order)
        return array_batches(read, self.samples, stored, self._views, order)

    def steps_an_epoch(self, batch_size: int, *, drop_remainder: bool = True) -> int:
        """Returns how many batches an epoch has.

        Raises:
            DataError: None, as there are fewer samples.
        """
        order = Order(max(1, batch_size), 0, 1, 0, True, drop_remainder, 1)
        steps = order.steps(self.samples)
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
                f"({self.name!r}) than {teacher.name!r}, or of the same before its weights "
                "changed. Call cache_teacher(..., overwrite=True) with the new one."
            )

    def check_data(self, data: Any) -> ArrayData | StreamData:
        """Returns `data` as the cache reads it; raises DataError unless the cache is of it."""
        read = data if isinstance(data, ArrayData | StreamData) else as_data(data)
        if not self._same_as_checked(read):
            if reason := self._difference(read):
                raise DataError(
                    f"The teacher cache {self.folder} is stale: it is of other data ({reason}). "
                    "Pass the data that it was written of, or call cache_teacher(..., "
                    "overwrite=True) with the new ones."
                )
            self._checked = read
        return read

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns the stored logits of a batch, shape (batch, ..., classes), float32."""
        return self.observe(x).logits

    def tap(self, layers: Iterable[str]) -> dict[str, Shape]:
        """Makes `observe` give the outputs of `layers` too, and returns their shapes by path.

        Raises:
            ConfigurationError: A layer that the cache does not hold.
        """
        self._tapped = tuple(dict.fromkeys(layers))
        return self._held(self._tapped)

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:  # noqa: D102
        del recording
        if not isinstance(x, Taught):
            raise ConfigurationError(
                "A teacher cache teaches on its own batches alone. Expected the batches of "
                f"cache.batches(data, batch_size=...). Received: plain samples ({_kind(x)}). "
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

    def student_inputs(self, x: Any) -> Any:  # noqa: D102
        return x.inputs if isinstance(x, Taught) else x

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless the student takes the samples that the teacher saw."""
        seen = {name: tf.TensorSpec(shape, dtype) for name, dtype, shape in self.manifest.inputs}
        takes = input_specs(student)
        flat = tf.nest.flatten(takes)
        named = (
            takes if isinstance(takes, dict) else dict(zip(student.input_names, flat, strict=True))
        )
        specs = [tf.TensorSpec(shape, dtype) for _, dtype, shape in self.manifest.inputs]
        if set(seen) == set(named):  # a dict, in an order of its own
            flat, specs = list(named.values()), [seen[name] for name in named]
        if [_core(spec) for spec in specs] != [_core(spec) for spec in flat]:
            check_fits(flat, specs, preprocessed=False)

    def fingerprint(self) -> str:  # noqa: D102
        return self.manifest.fingerprint()

    def _held(self, layers: Iterable[str]) -> dict[str, Shape]:
        layers, held = list(layers), self.layers
        if unknown := [path for path in layers if path not in held]:
            raise ConfigurationError(
                f"The teacher cache {self.folder} does not hold the outputs of "
                f"{', '.join(unknown)}. It holds: {', '.join(held) or 'logits alone'}. Pass "
                "layers= to cache_teacher to keep them."
            )
        return {path: held[path] for path in layers}

    def _table(self, name: str) -> Table:
        shards = self.manifest.shards
        paths = [self.folder / shard.folder / f"{name}.npy" for shard in shards]
        return Table(paths, [shard.samples for shard in shards])

    def _same_as_checked(self, read: Data) -> bool:
        """Whether these are the very arrays that were compared before: a digest takes its time."""
        before = self._checked
        if isinstance(before, StreamData) and isinstance(read, StreamData):
            return before.dataset is read.dataset
        if not isinstance(before, ArrayData) or not isinstance(read, ArrayData):
            return False
        old, new = tf.nest.flatten(before.x), tf.nest.flatten(read.x)
        return len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))

    def _difference(self, read: Data) -> str | None:
        manifest = self.manifest
        if read.kind != manifest.data:
            return f"{manifest.data}, not {read.kind}"
        if read.samples is not None and read.samples != manifest.samples:
            return f"{manifest.samples} samples, not {read.samples}"
        if read.fingerprint is not None and read.fingerprint != manifest.data_fingerprint:
            return "other values, shapes or dtypes in the samples"
        now = witness(self._views, read.first(_WITNESSES))
        if np.shape(now) != np.shape(manifest.witness) or not np.allclose(
            now, manifest.witness, atol=1e-4
        ):
            return "the first samples, or their augmented views, are others"
        return None


def _incomplete(folder: Path) -> str:
    if not (folder / PLAN).is_file():
        return f"Expected a teacher cache. Received: {folder}, which is none. Call cache_teacher."
    left = missing(read_manifest(folder / PLAN), read_shards(folder))
    what = f"{_some(left)} missing" if left else "the data were not read to their end"
    return (
        f"The teacher cache {folder} is not complete: {what}. Call cache_teacher again with the "
        "same arguments: it goes on from there."
    )


def _some(left: list[str]) -> str:
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return "; ".join(left[:3]) + more + (" are" if len(left) > 1 else " is")


def _kind(x: Any) -> str:
    return ", ".join(str(getattr(leaf, "shape", type(leaf))) for leaf in tf.nest.flatten(x))


def _core(spec: Any) -> list[int | None]:
    """Returns a sample's shape without trailing ones: Keras adds a missing last axis of 1."""
    shape = list(spec.shape[1:])
    while shape and shape[-1] == 1:
        shape.pop()
    return shape
