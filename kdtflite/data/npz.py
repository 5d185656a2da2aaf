"""Reading `.npz` files of strangers: no pickles, and an error that says what is wrong."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from kdtflite.errors import DataError

__all__ = ["read_npz"]


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of an `.npz` file.

    Args:
        path: The file, as written by `np.savez` or `np.savez_compressed`.

    Returns:
        The arrays by name, in the file's order.

    Raises:
        DataError: The file is missing, empty, cut off, of another format, or holds Python
            objects.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"Expected an .npz file. Received: {path}, which does not exist.")
    if not path.is_file():
        raise DataError(f"Expected an .npz file. Received: {path}, which is a folder.")
    if path.stat().st_size == 0:
        raise DataError(f"Expected an .npz file. Received: {path}, which is empty (0 bytes).")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(6)
        what = (
            "which is cut off; copy or download it again"
            if start.startswith(b"PK")
            else "a single .npy array; save several with np.savez(path, x=x, y=y)"
            if start == b"\x93NUMPY"
            else "which is none; write one with np.savez(path, x=x, y=y)"
        )
        raise DataError(f"Expected an .npz file. Received: {path}, {what}.")
    arrays: dict[str, np.ndarray] = {}
    name = "its list of arrays"
    try:
        # allow_pickle=False: a pickle in a stranger's file would run its code here.
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                arrays[name] = file[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise DataError(
                        f"Expected only arrays in {path}. Received: a file {name!r}. "
                        "Write it with np.savez(path, x=x, y=y)."
                    )
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error)
        if "allow_pickle" in reason:
            raise DataError(
                f"{name!r} in {path} holds Python objects (a ragged list?), which are not read, "
                "as they could run code. Save arrays of numbers of one shape."
            ) from error
        raise DataError(
            f"{path} is damaged: {name!r} cannot be read ({reason}). Copy or make it again."
        ) from error
    if not arrays:
        raise DataError(f"Expected arrays in {path}. Received: an .npz file without any.")
    return arrays
