"""Temporary folders that go when they are no longer used, even if the process is killed.

A folder is locked by the process that uses it, and the system releases the lock when that process
ends, however it ends. So whoever starts next can tell what a killed process left from what
another one uses, also across containers that share a disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

try:
    import fcntl as _fcntl
except ImportError:  # Windows: nothing is locked, so nothing is swept
    _locks: ModuleType | None = None
else:
    _locks = _fcntl

__all__ = [
    "collect_temporary_files",
    "is_leftover",
    "make_temporary_folder",
    "sweep_leftovers",
]

# Nobody else begins a name like this; older versions, which do not lock, have other names.
_MARK = "kdtflite-scratch-"
_NAME = re.compile(r"(?:\..+\.)?kdtflite-scratch-[a-z]+-[a-z0-9_]{8}")
_swept: set[Path] = set()


@contextlib.contextmanager
def make_temporary_folder(
    purpose: str, *, parent: Path | None = None, beside: str = ""
) -> Iterator[Path]:
    """Yields a new folder, which is removed at the end of the block.

    The first call of a process for a parent also removes what killed processes left there.

    Args:
        purpose: A word of lowercase letters for its name.
        parent: Where to make it; by default the system's folder for temporary files.
        beside: The file that it stands beside, for a hidden folder named after it.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    place = parent.absolute()
    if place not in _swept:
        _swept.add(place)
        sweep_leftovers(place)
    prefix = f".{beside}.{_MARK}{purpose}-" if beside else f"{_MARK}{purpose}-"
    folder, lock = _make_locked(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def collect_temporary_files(purpose: str) -> Iterator[Path]:
    """Gives this process, and those it starts, a temporary folder for the files of others.

    TensorFlow writes a file for each function that it traces, and removes it only if the process
    ends by itself.

    Args:
        purpose: A word of lowercase letters for its name.
    """
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with make_temporary_folder(purpose) as folder:
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            if variable is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = variable


def sweep_leftovers(parent: Path) -> list[str]:
    """Removes the temporary folders in `parent` whose processes have ended; returns their names.

    Folders of other users, and whatever `make_temporary_folder` did not make, stay.
    """
    removed: list[str] = []
    try:
        found = [entry for entry in os.scandir(parent) if is_leftover(entry)]
    except OSError:
        return removed
    for entry in found:
        lock = _lock(Path(entry.path), wait=False)
        if lock is None:
            continue
        shutil.rmtree(entry.path, ignore_errors=True)
        os.close(lock)
        removed.append(entry.name)
    return removed


def is_leftover(entry: os.DirEntry[str] | Path) -> bool:
    """Says whether a path is a temporary folder of this user, by its name; it may be in use."""
    if not _NAME.fullmatch(entry.name):
        return False
    try:
        if entry.is_symlink() or not entry.is_dir():
            return False
        return not hasattr(os, "getuid") or entry.stat().st_uid == os.getuid()
    except OSError:
        return False


def _make_locked(parent: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        if _locks is None:
            return folder, None
        lock = _lock(folder, wait=True)
        if folder.is_dir():  # and not swept between its making and its locking
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Returns the lock on a folder; None if another process has it or the disk knows no locks."""
    if _locks is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        _locks.flock(descriptor, _locks.LOCK_EX | (0 if wait else _locks.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
