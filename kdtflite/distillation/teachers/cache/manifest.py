"""What a folder of cached teacher outputs holds: its manifest and its shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.errors import DataError
from kdtflite.files import sha256, staged, write_json

__all__ = [
    "MANIFEST",
    "PLAN",
    "Manifest",
    "Shard",
    "damage",
    "missing",
    "read_manifest",
    "read_shards",
    "write_shard",
]

MANIFEST = "manifest.json"  # there only once every shard is
PLAN = "plan.json"

VERSION = 1


@dataclass(frozen=True)
class Shard:
    """The outputs for consecutive samples in one view: a folder, written whole or not at all.

    Attributes:
        view: Which view, from 0.
        part: Which part of the view, from 0.
        first: Row of the first sample.
        samples: How many samples.
        files: Size and SHA-256 by file.
    """

    view: int
    part: int
    first: int
    samples: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"view{self.view:03d}-{self.part:05d}"


@dataclass(frozen=True)
class Manifest:
    """What was cached of which teacher on which data, and how.

    Attributes:
        teacher: Name of the teacher.
        teacher_fingerprint: What `Teacher.fingerprint` gave.
        outputs: What it gives before it is turned into logits.
        output_shape: Shape of its logits, batch first.
        data: "arrays" or "tf.data".
        data_fingerprint: Of the samples; of a tf.data.Dataset known when it is read.
        samples: How many.
        inputs: Name (or None), dtype and shape of each input that the student is given.
        views: Views a sample.
        augmentation: What made the views.
        seed: Its seed.
        dtype: Of the stored outputs.
        shapes: Shape of a sample's outputs: "logits", and "features-0", ...
        layers: The teacher's layers, in the order of their features' numbers.
        shard: Samples (of a tf.data.Dataset: batches) a shard.
        witness: Numbers by which the views of the first samples are told.
        shards: All of them, by view and part.
        version: Of this format.
    """

    teacher: str
    teacher_fingerprint: str
    outputs: str
    output_shape: list[int | None]
    data: str
    data_fingerprint: str | None
    samples: int | None
    inputs: list[tuple[str | None, str, list[int | None]]]
    views: int
    augmentation: dict[str, Any] | None
    seed: int
    dtype: str
    shapes: dict[str, list[int]]
    layers: list[str]
    shard: int
    witness: list[list[float]]
    shards: list[Shard] = field(default_factory=list)
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold, and holds alike when it is read again."""
        return json.loads(json.dumps(asdict(self)))

    def fingerprint(self) -> str:
        """Returns a SHA-256 of everything that decides the outputs that it gives."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Returns what `path` says.

    Raises:
        DataError: It is damaged, or of another version.
    """
    try:
        values = json.loads(path.read_text())
        version = values["version"]
        if version == VERSION:
            return Manifest(**{**values, "shards": [Shard(**s) for s in values["shards"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}). Write the cache anew: "
            "cache_teacher(..., overwrite=True)."
        ) from error
    raise DataError(
        f"{path} is of version {version}. Expected {VERSION}. Write the cache anew: "
        "cache_teacher(..., overwrite=True)."
    )


def write_shard(folder: Path, shard: Shard, arrays: dict[str, np.ndarray]) -> None:
    """Writes a shard's arrays and what tells whether they are whole.

    Args:
        folder: The cache's.
        shard: Which samples; its files are those of `arrays`.
        arrays: Outputs by name, samples first.
    """
    with staged(folder / shard.folder, overwrite=True) as temporary:
        temporary.mkdir()
        files = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            np.save(path, array)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        write_json(temporary / "shard.json", asdict(shard) | {"files": files})


def read_shards(folder: Path) -> list[Shard]:
    """Returns the shards that stand in a folder, by view and part."""
    found = []
    for path in folder.glob("view*/shard.json"):
        try:
            found.append(Shard(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue  # as good as not there
    return sorted(found, key=lambda shard: (shard.view, shard.part))


def damage(folder: Path, shard: Shard, *, digests: bool = True) -> str | None:
    """Returns what is wrong with a shard's files in a few words, or None.

    Args:
        folder: The cache's.
        shard: As it was written.
        digests: Read every byte; else the sizes alone are compared.
    """
    for name, written in shard.files.items():
        path = folder / shard.folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != written["bytes"]:
            return f"{path} has {path.stat().st_size} bytes, not {written['bytes']}"
        if digests and sha256(path) != written["sha256"]:
            return f"{path} does not have the SHA-256 it was written with"
    return None


def missing(manifest: Manifest, there: list[Shard], *, parts: int | None = None) -> list[str]:
    """Returns the parts of a cache that were not written, in words.

    Args:
        manifest: What is wanted.
        there: The shards that there are.
        parts: How many a view has, where that is known.
    """
    written = {(shard.view, shard.part) for shard in there}
    size = manifest.shard
    samples = manifest.samples if manifest.data == "arrays" else None
    if parts is None:
        known = 1 + max((shard.part for shard in there), default=0)
        parts = known if samples is None else -(-samples // size)

    def called(part: int) -> str:
        if samples is None:
            return f"batches from {part * size} on"
        return f"samples {part * size} to {min((part + 1) * size, samples) - 1}"

    return [
        f"view {view}, {called(part)}"
        for view in range(manifest.views)
        for part in range(parts)
        if (view, part) not in written
    ]
