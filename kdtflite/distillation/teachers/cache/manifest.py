"""The manifest and the shards of a folder of cached teacher outputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.errors import DataError
from kdtflite.files import sha256, write_atomically, write_json

__all__ = [
    "MANIFEST",
    "PLAN",
    "Manifest",
    "Shard",
    "find_damage",
    "list_missing",
    "read_manifest",
    "read_shards",
    "summarize_missing",
    "write_shard",
]

MANIFEST = "manifest.json"  # written after all shards
PLAN = "plan.json"

VERSION = 1


@dataclass(frozen=True)
class Shard:
    """The outputs for consecutive samples in one view: a folder, written whole or not at all.

    Attributes:
        view: Number of the view, from 0.
        part: Number of the shard within the view, from 0.
        first: Row of the first sample.
        samples: Number of samples.
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
    """What was cached, from which teacher on which data, and how.

    Attributes:
        teacher: Name of the teacher.
        teacher_fingerprint: The teacher's `fingerprint()`.
        outputs: What it gives before the conversion to logits.
        output_shape: Shape of its logits, batch first.
        data: "arrays" or "tf.data".
        data_fingerprint: SHA-256 of the samples; for a tf.data.Dataset, known after reading.
        samples: Number of samples.
        inputs: Name (or None), dtype and shape of each input of the student.
        views: Views per sample.
        augmentation: The augmentation that made the views.
        seed: Its seed.
        dtype: Dtype of the stored outputs.
        shapes: Shape of a sample's outputs: "logits", and "features-0", ...
        layers: The teacher's layers, in the order of their features' numbers.
        shard: Samples (for a tf.data.Dataset: batches) per shard.
        witness: Numbers that identify the views of the first samples.
        stored_views: Whether the shards also hold the views, "inputs-0", ...
        shards: All shards, by view and part.
        version: Version of this format.
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
    stored_views: bool = False
    shards: list[Shard] = field(default_factory=list)
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Returns the same values as JSON gives back."""
        return json.loads(json.dumps(asdict(self)))

    def fingerprint(self) -> str:
        """Returns a SHA-256 of everything that decides its outputs."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest in a file.

    Raises:
        DataError: It is damaged, or has another version.
    """
    try:
        values = json.loads(path.read_text())
        version = values["version"]
        if version == VERSION:
            return Manifest(**{**values, "shards": [Shard(**s) for s in values["shards"]]})
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}). Write the cache again: "
            "cache_teacher(..., overwrite=True)."
        ) from error
    raise DataError(
        f"{path} has version {version}. Expected {VERSION}. Write the cache again: "
        "cache_teacher(..., overwrite=True)."
    )


def write_shard(folder: Path, shard: Shard, arrays: dict[str, np.ndarray]) -> None:
    """Writes a shard's arrays, and the checksums that prove them whole.

    Args:
        folder: The folder of the cache.
        shard: The samples; its files are those of `arrays`.
        arrays: Outputs by name, samples first.
    """
    with write_atomically(folder / shard.folder, overwrite=True) as temporary:
        temporary.mkdir()
        files = {}
        for name, array in arrays.items():
            path = temporary / f"{name}.npy"
            np.save(path, array)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        write_json(temporary / "shard.json", asdict(shard) | {"files": files})


def read_shards(folder: Path) -> list[Shard]:
    """Returns the shards in a folder, by view and part."""
    found = []
    for path in folder.glob("view*/shard.json"):
        try:
            found.append(Shard(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError, RecursionError):
            continue  # counts as missing
    return sorted(found, key=lambda shard: (shard.view, shard.part))


def find_damage(folder: Path, shard: Shard, *, digests: bool = True) -> str | None:
    """Returns what is wrong with a shard's files in a few words, or None.

    Args:
        folder: The folder of the cache.
        shard: The shard as it was written.
        digests: Whether to read every byte; otherwise only sizes are compared.
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


def list_missing(
    manifest: Manifest, present: list[Shard], *, parts: int | None = None
) -> list[str]:
    """Returns descriptions of the shards of a cache that were not written.

    Args:
        manifest: What the cache should hold.
        present: The shards that exist.
        parts: Number of shards per view, if known.
    """
    written = {(shard.view, shard.part) for shard in present}
    size = manifest.shard
    samples = manifest.samples if manifest.data == "arrays" else None
    if parts is None:
        known = 1 + max((shard.part for shard in present), default=0)
        parts = known if samples is None else -(-samples // size)

    def describe(part: int) -> str:
        if samples is None:
            return f"batches from {part * size} on"
        return f"samples {part * size} to {min((part + 1) * size, samples) - 1}"

    return [
        f"view {view}, {describe(part)}"
        for view in range(manifest.views)
        for part in range(parts)
        if (view, part) not in written
    ]


def summarize_missing(descriptions: list[str]) -> str:
    """Returns the first of several missing shards as the subject of a sentence, with its verb."""
    more = f" and {len(descriptions) - 3} more" if len(descriptions) > 3 else ""
    return "; ".join(descriptions[:3]) + more + (" are" if len(descriptions) > 1 else " is")
