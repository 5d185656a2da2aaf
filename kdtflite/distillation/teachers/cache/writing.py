"""Writing of a teacher's outputs to disk."""

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

from kdtflite.arguments import check_arguments
from kdtflite.data.augment import Augmentation
from kdtflite.distillation.teachers.cache.data import Data, SampleBatch, StreamData, as_data
from kdtflite.distillation.teachers.cache.manifest import (
    MANIFEST,
    PLAN,
    Manifest,
    Shard,
    find_damage,
    list_missing,
    read_manifest,
    read_shards,
    write_shard,
)
from kdtflite.distillation.teachers.cache.outputs import TeacherOutputs
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.teachers.cache.views import WITNESSES, Views, compute_witness
from kdtflite.distillation.teachers.cache.workers import Workers, find_worker
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.errors import ConfigurationError, DataError, OutputExistsError, choose
from kdtflite.files import write_json
from kdtflite.progress import say, track

__all__ = ["cache_teacher"]

_SHARD_SAMPLES = 16_384


@check_arguments
def cache_teacher(
    teacher: Any,
    data: Any,
    folder: str | os.PathLike[str],
    *,
    views: Any = 1,
    augmentation: Augmentation | Callable[[Any, Any], Any] | None = None,
    store_views: bool = False,
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
    """Runs a teacher once over the data and stores its outputs, so that training need not.

    With several augmented views per sample, the student is later shown exactly the views that the
    teacher saw: view v of sample i depends on (seed, v, i) alone (consistent teaching,
    Beyer et al., arXiv 2106.05237; fast knowledge distillation, Shen & Xing, arXiv 2112.01528).

    When called again after it was killed, it resumes after the last complete shard; a complete
    cache is only opened. Under MirroredStrategy the replicas share every batch; under
    MultiWorkerMirroredStrategy every worker writes its own shards and waits for the others.

    Args:
        teacher: Anything `Distiller` takes as a teacher.
        data: (x, y), a Split, a kdtflite Dataset (its training split), or a finite tf.data.Dataset
            of batches that gives the same samples every time. Labels are not stored.
        folder: The folder of the cache.
        views: Augmented views per sample; epoch e of training shows view e % views. Or the views
            themselves, made elsewhere: arrays in the structure of x, shape (views, samples, ...).
        augmentation: An Augmentation of images; or a function `(sample, seed) -> sample` of
            TensorFlow operations, with seed of shape (2,), int64.
        store_views: Write the views too, views times the size of the data: batches then read
            them, which costs a fraction of making them anew in every epoch.
        layers: Paths of the teacher's layers to store as well, for losses on features.
        dtype: "float32", or "float16" for half the size: 11 bits, up to 65504.
        batch_size: Samples per batch of the teacher, for arrays.
        seed: Seed of the augmentation.
        shard_bytes: Approximate limit of the size of a file; a shard has at most 16,384 samples.
        overwrite: Replace a cache of another teacher, other data or other settings.
        preprocessing: Turns the student's inputs into the teacher's.
        outputs: The teacher's kind of outputs, as `ModelTeacher` takes it.
        worker: (index, count) of this process among those that write the cache together; by
            default that of the tf.distribute strategy in scope.

    Returns:
        The cache: a teacher for `Distiller`, and the batches to train on.

    Raises:
        OutputExistsError: The folder holds something else.
        DataError: An output is NaN, infinite or beyond float16, or the data differ from one reading
            to the next.
        ConfigurationError: An option makes no sense, or the teacher does not have a layer.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> from kdtflite import cache_teacher
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8, int)
        >>> teacher = keras.Sequential([keras.layers.Dense(3, input_shape=(4,))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = cache_teacher(teacher, (x, y), folder, outputs="logits")
        ...     for batch, labels in cache.batches((x, y), batch_size=4):
        ...         print(batch.inputs.shape, batch.logits.shape, labels.shape)
        (4, 4) (4, 3) (4,)
        (4, 4) (4, 3) (4,)
    """
    folder = Path(folder)
    choose(dtype, ("float16", "float32"), what="dtype of a teacher cache")
    if batch_size < 1 or shard_bytes < 1:
        raise ConfigurationError(
            "Expected batch_size and shard_bytes of at least 1. Received: "
            f"batch_size={batch_size}, shard_bytes={shard_bytes}."
        )
    workers = Workers(folder, find_worker(worker))
    read = as_data(data)
    view_of = Views(augmentation, views=views, seed=seed)
    view_of.check(read.specs, read.samples)
    copied = copy.copy(as_teacher(teacher, preprocessing=preprocessing, outputs=outputs))
    teach = TeacherOutputs(copied, list(dict.fromkeys(layers)), view_of, np.dtype(dtype))
    plan = _plan(teach, read, shard_bytes, store_views=store_views)
    _prepare(folder, plan, overwrite=overwrite, alone=workers.count == 1)
    if not (folder / MANIFEST).exists():
        _write(folder, plan, teach, read, workers, batch_size)
    given = None if view_of.arrays is None else view_of.arrays
    return TeacherCache.open(folder, data=read, augmentation=augmentation, views=given)


def _plan(teach: TeacherOutputs, read: Data, shard_bytes: int, *, store_views: bool) -> Manifest:
    """Returns the manifest to be, from a trial on the first samples."""
    x = read.take(WITNESSES)
    one = teach.make_inputs(x, 0, 0)
    teach.check_inputs(one)
    tried = teach(one, 0, 0)
    marks = compute_witness(teach.views, x)
    if not np.isfinite(marks).all():
        raise DataError(
            "Expected finite numbers in the samples to cache. Received: NaN or infinity in the "
            f"first {len(marks[0])}. Leave such samples out, or replace the values."
        )
    widest = max(array[:1].nbytes for array in tried.values())
    if store_views:
        widest = max(widest, *(leaf[:1].nbytes for leaf in _list_views(one, read.specs)))
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
        shard=read.choose_shard(max(1, min(_SHARD_SAMPLES, shard_bytes // max(widest, 1)))),
        witness=marks,
        stored_views=store_views,
    )


def _list_views(inputs: Any, specs: Any) -> list[np.ndarray]:
    """Returns a batch of views as arrays to store.

    Raises:
        DataError: They are texts, or have another structure than the samples.
    """
    leaves = tf.nest.flatten(inputs)
    if len(leaves) != len(tf.nest.flatten(specs)) or any(
        not (leaf.dtype.is_floating or leaf.dtype.is_integer or leaf.dtype.is_bool)
        for leaf in leaves
    ):
        raise DataError(
            "Expected views of numbers, in the structure of the samples, to store them. Received: "
            f"{', '.join(f'{leaf.dtype.name} {tuple(leaf.shape)}' for leaf in leaves)}. Leave out "
            "store_views=True."
        )
    return [leaf.numpy() for leaf in leaves]


def _prepare(folder: Path, plan: Manifest, *, overwrite: bool, alone: bool) -> None:
    """Prepares the folder to carry out `plan`, or to resume it."""
    if (folder / PLAN).exists():
        difference = _find_difference(read_manifest(folder / PLAN), plan)
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
            f"{folder} holds files that are not a teacher cache. Choose another folder."
        )
    write_json(folder / PLAN, plan.to_dict(), overwrite=True)


def _find_difference(present: Manifest, wanted: Manifest) -> str | None:
    """Returns what the present cache is of, if it is not the wanted one."""
    old, new = present.to_dict(), wanted.to_dict()
    if old["teacher_fingerprint"] != new["teacher_fingerprint"]:
        return f"another teacher ({present.teacher!r})"
    if old["data_fingerprint"] != new["data_fingerprint"]:
        return "other data"
    if not np.allclose(old.pop("witness"), new.pop("witness"), atol=1e-4):
        return "other data or another augmentation"
    for name in ("teacher", "shards"):  # names of models do not matter
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
    """Writes this worker's shards, waits for the others and writes the manifest."""
    done = _find_complete(folder, workers)
    if done:
        say(f"Teacher cache: resuming after {len(done)} shards")
    batches = _read_batches(plan, read, workers, done, batch_size)
    total = None
    if plan.samples is not None:
        sizes = [
            min(plan.shard, plan.samples - part * plan.shard)
            for part in range(-(-plan.samples // plan.shard))
            for view in range(plan.views)
            if workers.owns(part) and (view, part) not in done
        ]
        total = sum(-(-size // batch_size) for size in sizes)
    tracked = track(batches, f"Teacher {plan.teacher!r} to {folder}", total=total)
    for (view, part), group in itertools.groupby(tracked, key=lambda b: (b[0], b[1].part)):
        arrays: dict[str, list[np.ndarray]] = {}
        first = None
        for _, batch in group:
            first = batch.first if first is None else first
            inputs = teach.make_inputs(batch.x, batch.first, view)
            seen = teach(inputs, batch.first, view)
            teach.check_shapes(seen, plan.shapes, batch.first)
            if plan.stored_views:
                for i, array in enumerate(_list_views(inputs, read.specs)):
                    seen[f"inputs-{i}"] = array
            if batch.marks is not None:
                seen["rows"] = batch.marks
            for name, array in seen.items():
                arrays.setdefault(name, []).append(array)
            workers.sign()
        whole = {name: np.concatenate(parts) for name, parts in arrays.items()}
        shard = Shard(view, part, first or 0, len(whole["logits"]))
        for left in folder.glob(f".{shard.folder}.*"):  # from a run that was killed
            shutil.rmtree(left)
        write_shard(folder, shard, whole)
    parts = read.count_shards(plan.shard) or 0
    workers.wait(lambda: list_missing(plan, read_shards(folder), parts=parts))
    shards = [shard for shard in read_shards(folder) if shard.part < parts]
    if isinstance(read, StreamData) and read.fingerprints is not None:
        _check_rows(folder, shards, read.fingerprints)
    complete = replace(plan, samples=read.samples, data_fingerprint=read.fingerprint, shards=shards)
    write_json(folder / MANIFEST, complete.to_dict(), overwrite=True)


def _check_rows(folder: Path, shards: list[Shard], fingerprints: np.ndarray) -> None:
    """Raises DataError if a shard was written from other samples than were just read."""
    for shard in shards:
        written = np.load(folder / shard.folder / "rows.npy")
        now = fingerprints[shard.first : shard.first + shard.samples]
        if not np.array_equal(written, now):
            raise DataError(
                f"The samples are no longer those from which {folder / shard.folder} was written. "
                "Pass overwrite=True to cache_teacher to start again."
            )


def _find_complete(folder: Path, workers: Workers) -> set[tuple[int, int]]:
    """Returns view and part of this worker's undamaged shards."""
    own = [shard for shard in read_shards(folder) if workers.owns(shard.part)]
    done = set()
    for shard in own:
        if (problem := find_damage(folder, shard)) is None:
            done.add((shard.view, shard.part))
        else:
            say(f"Teacher cache: {problem}; writing it again")
            shutil.rmtree(folder / shard.folder)
    return done


def _read_batches(
    plan: Manifest, read: Data, workers: Workers, done: set[tuple[int, int]], batch_size: int
) -> Iterator[tuple[int, SampleBatch]]:
    """Yields the batches that have not been written, each with its view."""
    for view in range(plan.views):

        def is_wanted(part: int, view: int = view) -> bool:
            return workers.owns(part) and (view, part) not in done

        parts = read.count_shards(plan.shard)
        if parts is not None and not any(map(is_wanted, range(parts))):
            continue
        for batch in read.read(plan.shard, batch_size, is_wanted):
            yield view, batch
