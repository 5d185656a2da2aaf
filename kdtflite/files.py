"""Files written whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdtflite.errors import KdtfliteError, OutputExistsError

__all__ = ["refuse_existing", "sha256", "staged", "write_bytes", "write_json", "write_text"]


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool, option: str) -> Path:
    """Returns `path`, or raises if something stands there and may not be replaced.

    Called before long work as well as before writing, so that nobody waits for a refusal.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Pass {option} to replace it.")
    return path


@contextlib.contextmanager
def staged(
    path: str | os.PathLike[str], *, overwrite: bool = False, option: str = "overwrite=True"
) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds.

    The block may write a file or create a folder there. If it raises, or the disk is full,
    the temporary path is removed and what stood at `path` is untouched.

    Raises:
        OutputExistsError: `path` exists and `overwrite` is False.
        KdtfliteError: The file cannot be written (full disk, missing rights).
    """
    path = refuse_existing(path, overwrite=overwrite, option=option)
    holder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
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
    finally:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)


def _exchange(new: Path, path: Path, aside: Path) -> None:
    """Puts the folder `new` at `path`; what stood there goes `aside`, or back if that fails."""
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
        staged(path, overwrite=overwrite, option=option) as temporary,
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


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
