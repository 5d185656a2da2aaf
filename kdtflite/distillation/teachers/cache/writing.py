"""Writing a teacher's outputs to disk."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.distillation.teachers.cache.data import Data, Part, StreamData, as_data
from kdtflite.distillation.teachers.cache.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    Shard,
    damage,
    missing,
    read_manifest,
    read_shards,
    write_shard,
)
from kdtflite.distillation.teachers.cache.outputs import TeacherOutputs
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.teachers.cache.views import Views, witness
from kdtflite.distillation.teachers.cache.workers import Workers, this_worker
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.errors import ConfigurationError, DataError, OutputExistsError, choose
from kdtflite.files import write_json
from kdtflite.progress import say, track

__all__ = ["cache_teacher"]

_SHARD_SAMPLES = 16_384
_WITNESSES = 8


def cache_teacher(
    teacher: Any,
    data: Any,
    folder: str | os.PathLike[str],
    *,
    views: int = 1,
    augmentation: Augmentation | Callable[[Any, Any], Any] | None = None,
    layers: Iterable[str] = (),
    dtype: str = "float32",
    batch_size: int = 256,
    seed: int = 0,
    shard_bytes: int = 2**28,
    overwrite: bool = False,
    preprocessing: Callable[[Any], Any] | None = None,
    outputs: str = "auto",
    worker: tuple[int, int] | None = None,
) -> TeacherCache:
    """Runs a teacher once over the data and keeps what it gives, so that training need not.

    With several augmented views a sample, the student is later shown exactly the views that the
    teacher saw: view v of sample i is a function of (seed, v, i) alone (consistent teaching,
    Beyer et al., arXiv 2106.05237; fast knowledge distillation, Shen & Xing, arXiv 2112.01528).

    A run that was killed goes on after its last whole shard when it is called again; a cache that
    is whole is only opened. Under MirroredStrategy the replicas share every batch; under
    MultiWorkerMirroredStrategy every worker writes its own shards, and waits for the others'.

    Args:
        teacher: Whatever `Distiller` takes as a teacher.
        data: (x, y), a Split, a kdtflite Dataset (its training split), or a finite tf.data.Dataset
            of batches that gives the same samples every time. Labels are not kept.
        folder: Where the cache is written.
        views: Augmented views a sample; epoch e of training shows view e % views.
        augmentation: An Augmentation of images; or a function `(sample, seed) -> sample` of
            TensorFlow operations, with seed of shape (2,), int64.
        layers: Paths of the teacher's layers whose outputs are kept too, for losses on features.
        dtype: "float32", or "float16" for half the size: 11 bits, up to 65504.
        batch_size: Samples that the teacher sees at a time, for arrays.
        seed: Of the augmentation.
        shard_bytes: Largest size of a file, about; a shard has at most 16,384 samples.
        overwrite: Replace a cache of another teacher, other data or other settings.
        preprocessing: Turns the student's inputs into the teacher's.
        outputs: What the teacher gives, as `ModelTeacher` takes it.
        worker: (index, count) of this process among those that write the cache together; by
            default as the tf.distribute strategy in scope says.

    Returns:
        The cache: a teacher for `Distiller`, and the batches to train on.

    Raises:
        OutputExistsError: Something else stands in `folder`.
        DataError: Outputs that are NaN, infinite or beyond float16, by sample; data that differ
            from one reading to the next.
        ConfigurationError: Options that make no sense, or layers that the teacher does not have.

    Example:
        >>> cache = cache_teacher(teacher, (x, y), "cache", views=8,
        ...                       augmentation=Augmentation(shift=2, flip=True))
        >>> distiller = Distiller(student, cache, losses=[SoftTargets(temperature=1.0)])
        >>> distiller.compile("adam", SparseCategoricalCrossentropy(from_logits=True))
        >>> distiller.fit(cache.batches((x, y), batch_size=128, epochs=24), epochs=24,
        ...               steps_per_epoch=cache.steps_an_epoch(128))
    """
    folder = Path(folder)
    choose(dtype, ("float16", "float32"), what="dtype of a teacher cache")
    if batch_size < 1 or shard_bytes < 1:
        raise ConfigurationError(
            "Expected batch_size and shard_bytes from 1 up. Received: "
            f"batch_size={batch_size}, shard_bytes={shard_bytes}."
        )
    workers = Workers(folder, this_worker(worker))
    read = as_data(data)
    view_of = Views(augmentation, views=views, seed=seed)
    view_of.check(read.specs)
    taught = copy.copy(as_teacher(teacher, preprocessing=preprocessing, outputs=outputs))
    teach = TeacherOutputs(taught, list(dict.fromkeys(layers)), view_of, np.dtype(dtype))
    plan = _plan(teach, read, shard_bytes)
    _prepare(folder, plan, overwrite=overwrite, alone=workers.count == 1)
    if not (folder / MANIFEST).exists():
        _write(folder, plan, teach, read, workers, batch_size)
    return TeacherCache.open(folder, data=read, augmentation=augmentation)


def _plan(teach: TeacherOutputs, read: Data, shard_bytes: int) -> Manifest:
    """Returns what is going to be written, from a trial on the first samples."""
    x = read.first(_WITNESSES)
    one = teach.inputs(x, 0, 0)
    teach.check_inputs(one)
    tried = teach(one, 0, 0)
    marks = witness(teach.views, x)
    if not np.isfinite(marks).all():
        raise DataError(
            "Expected finite numbers in the samples to cache. Received: NaN or infinity in the "
            f"first {len(marks[0])}. Leave such samples out, or replace the values."
        )
    widest = max(array[:1].nbytes for array in tried.values())
    names: Sequence[str | None] = list(one) if isinstance(one, dict) else [None] * 99
    given = [one[name] for name in names] if isinstance(one, dict) else tf.nest.flatten(one)
    teacher = teach.teacher
    return Manifest(
        teacher=teacher.name,
        teacher_fingerprint=teacher.fingerprint(),
        outputs=teacher.outputs,
        output_shape=list(teacher.output_shape),
        data=read.kind,
        data_fingerprint=read.fingerprint,
        samples=read.samples,
        inputs=[
            (name, tensor.dtype.name, [None, *tensor.shape[1:]])
            for name, tensor in zip(names, given, strict=False)
        ],
        views=teach.views.views,
        augmentation=teach.views.describe(),
        seed=teach.views.seed,
        dtype=teach.dtype.name,
        shapes={name: list(array.shape[1:]) for name, array in tried.items()},
        layers=teach.layers,
        shard=read.shard(max(1, min(_SHARD_SAMPLES, shard_bytes // max(widest, 1)))),
        witness=marks,
    )


def _prepare(folder: Path, plan: Manifest, *, overwrite: bool, alone: bool) -> None:
    """Makes the folder one in which `plan` can be carried out, or gone on with."""
    if (folder / PLAN).exists():
        difference = _difference(read_manifest(folder / PLAN), plan)
        if difference is None:
            return
        if not overwrite:
            raise OutputExistsError(
                f"{folder} holds a cache of {difference}. Pass overwrite=True to replace it, or "
                "choose another folder."
            )
        if not alone:
            raise OutputExistsError(
                f"{folder} holds a cache of {difference}. Several workers cannot replace it: "
                "remove it first, or choose another folder."
            )
        for path in [folder / MANIFEST, folder / PLAN, *folder.glob(".worker-*")]:
            path.unlink(missing_ok=True)
        for path in [*folder.glob("view[0-9]*-*"), *folder.glob(".view[0-9]*-*")]:
            shutil.rmtree(path)
    elif folder.exists() and any(path.name[0] != "." for path in folder.iterdir()):
        raise OutputExistsError(
            f"{folder} holds files that are no teacher cache. Choose another folder."
        )
    write_json(folder / PLAN, plan.to_dict(), overwrite=True)


def _difference(there: Manifest, wanted: Manifest) -> str | None:
    """Returns of what the cache that is there was made, where not of what is wanted."""
    old, new = there.to_dict(), wanted.to_dict()
    if old["teacher_fingerprint"] != new["teacher_fingerprint"]:
        return f"another teacher ({there.teacher!r})"
    if old["data_fingerprint"] != new["data_fingerprint"]:
        return "other data"
    if not np.allclose(old.pop("witness"), new.pop("witness"), atol=1e-4):
        return "other data or another augmentation"
    for name in ("teacher", "shards"):  # what a model is called decides nothing
        old.pop(name), new.pop(name)
    changed = [f"{name}={old[name]}, not {new[name]}" for name in new if old[name] != new[name]]
    return f"other settings ({'; '.join(changed)})" if changed else None


def _write(
    folder: Path,
    plan: Manifest,
    teach: TeacherOutputs,
    read: Data,
    workers: Workers,
    batch_size: int,
) -> None:
    """Writes this worker's shards, waits for the others' and states what there is."""
    done = _whole(folder, workers)
    if done:
        say(f"Teacher cache: going on after {len(done)} shards")
    batches = _batches(plan, read, workers, done, batch_size)
    total = None
    if plan.samples is not None:
        sizes = [
            min(plan.shard, plan.samples - part * plan.shard)
            for part in range(-(-plan.samples // plan.shard))
            for view in range(plan.views)
            if workers.has(part) and (view, part) not in done
        ]
        total = sum(-(-size // batch_size) for size in sizes)
    tracked = track(batches, f"Teacher {plan.teacher!r} to {folder}", total=total)
    for (view, part), group in itertools.groupby(tracked, key=lambda b: (b[0], b[1].part)):
        arrays: dict[str, list[np.ndarray]] = {}
        first = None
        for _, batch in group:
            first = batch.first if first is None else first
            seen = teach(teach.inputs(batch.x, batch.first, view), batch.first, view)
            teach.check_shapes(seen, plan.shapes, batch.first)
            if batch.marks is not None:
                seen["rows"] = batch.marks
            for name, array in seen.items():
                arrays.setdefault(name, []).append(array)
            workers.sign()
        whole = {name: np.concatenate(parts) for name, parts in arrays.items()}
        shard = Shard(view, part, first or 0, len(whole["logits"]))
        for left in folder.glob(f".{shard.folder}.*"):  # of a run that was killed
            shutil.rmtree(left)
        write_shard(folder, shard, whole)
    parts = read.parts(plan.shard) or 0
    workers.wait(lambda: missing(plan, read_shards(folder), parts=parts))
    shards = [shard for shard in read_shards(folder) if shard.part < parts]
    if isinstance(read, StreamData) and read.fingerprints is not None:
        _check_rows(folder, shards, read.fingerprints)
    complete = replace(plan, samples=read.samples, data_fingerprint=read.fingerprint, shards=shards)
    write_json(folder / MANIFEST, complete.to_dict(), overwrite=True)


def _check_rows(folder: Path, shards: list[Shard], fingerprints: np.ndarray) -> None:
    """Raises DataError if a shard was once written of other samples than were read now."""
    for shard in shards:
        written = np.load(folder / shard.folder / "rows.npy")
        now = fingerprints[shard.first : shard.first + shard.samples]
        if not np.array_equal(written, now):
            raise DataError(
                f"The samples are no longer those of which {folder / shard.folder} was written. "
                "Pass overwrite=True to cache_teacher to begin anew."
            )


def _whole(folder: Path, workers: Workers) -> set[tuple[int, int]]:
    """Returns view and part of this worker's shards that stand there undamaged."""
    own = [shard for shard in read_shards(folder) if workers.has(shard.part)]
    done = set()
    for shard in own:
        if (problem := damage(folder, shard)) is None:
            done.add((shard.view, shard.part))
        else:
            say(f"Teacher cache: {problem}; written again")
            shutil.rmtree(folder / shard.folder)
    return done


def _batches(
    plan: Manifest, read: Data, workers: Workers, done: set[tuple[int, int]], batch_size: int
) -> Iterator[tuple[int, Part]]:
    """Yields the batches that are still to be written, each with its view."""
    for view in range(plan.views):

        def wanted(part: int, view: int = view) -> bool:
            return workers.has(part) and (view, part) not in done

        parts = read.parts(plan.shard)
        if parts is not None and not any(map(wanted, range(parts))):
            continue
        for batch in read.read(plan.shard, batch_size, wanted):
            yield view, batch
