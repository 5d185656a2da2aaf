"""Files written whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdtflite.errors import KdtfliteError, OutputExistsError
from kdtflite.leftovers import make_temporary_folder

__all__ = [
    "read_json",
    "refuse_existing",
    "sha256",
    "write_atomically",
    "write_bytes",
    "write_json",
    "write_text",
]

_BLOCK_BYTES = 1 << 20


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool, option: str) -> Path:
    """Returns `path`, or raises if it exists and may not be replaced.

    Called before long work as well as before writing, so that a refusal comes at once.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Pass {option} to replace it.")
    return path


@contextlib.contextmanager
def write_atomically(
    path: str | os.PathLike[str], *, overwrite: bool = False, option: str = "overwrite=True"
) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds.

    The block may write a file or create a folder there. If it raises, or the disk is full,
    the temporary path is removed and whatever was at `path` is untouched. If the process is
    killed, the next one that writes into the folder removes it.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is False.
        KdtfliteError: The file cannot be written (full disk, missing rights).
    """
    path = refuse_existing(path, overwrite=overwrite, option=option)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with make_temporary_folder("write", parent=path.parent, beside=path.name[:100]) as holder:
            temporary = holder / path.name
            yield temporary
            if temporary.is_dir() and path.exists():
                _exchange(temporary, path, holder / "replaced")
            else:
                temporary.replace(path)
    except OSError as error:
        if isinstance(error, KdtfliteError):
            raise
        raise KdtfliteError(
            f"Could not write {path}: {error.strerror or error}. Nothing was written there. "
            "Free some space or choose another place."
        ) from error


def _exchange(new: Path, path: Path, aside: Path) -> None:
    """Replaces the folder at `path` by `new`; if that fails, the old one is put back."""
    path.rename(aside)
    try:
        new.replace(path)
    except OSError:
        aside.rename(path)
        raise


def write_bytes(
    path: str | os.PathLike[str],
    data: bytes,
    *,
    overwrite: bool = False,
    option: str = "overwrite=True",
) -> Path:
    """Writes `data` to `path`, whole or not at all, and returns the path."""
    with (
        write_atomically(path, overwrite=overwrite, option=option) as temporary,
        open(temporary, "wb") as file,
    ):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False) -> Path:
    """Writes `text` as UTF-8 to `path`, whole or not at all, and returns the path."""
    return write_bytes(path, text.encode(), overwrite=overwrite)


def write_json(path: str | os.PathLike[str], value: Any, *, overwrite: bool = False) -> Path:
    """Writes `value` as indented JSON to `path`, whole or not at all, and returns the path."""
    return write_text(path, json.dumps(value, indent=2) + "\n", overwrite=overwrite)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value in a JSON file, or None if there is no such file or it is damaged."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
