"""Reads untrusted `.npz` files: no pickles, nothing larger than it says, and clear errors."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdtflite.errors import PARSER_FAULTS, DataError, to_line

__all__ = ["read_npz"]

# bool, integers, floats and texts; complex numbers, dates, records and Python objects have no use.
_KINDS = "biufUS"
# zlib packs zeros about 1,000 : 1 and real data below 100 : 1.
_MOST_RATIO = 200
_ALWAYS_ALLOWED_BYTES = 256 << 20
_MOST_HEADER_BYTES = 10_000  # NumPy's own limit, which keeps literal_eval from long work
_FAULTS = (
    *PARSER_FAULTS,
    SyntaxError,
    EOFError,
    OSError,
    NotImplementedError,  # an unknown method of compression
    RuntimeError,  # a password: zipfile has no error class for that
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of an `.npz` file.

    What the file claims to hold is held against the sizes of its members before memory is taken.

    Args:
        path: The file, as written by `np.savez` or `np.savez_compressed`.

    Returns:
        The arrays by name, in the file's order, in the machine's byte order.

    Raises:
        DataError: The file is missing, empty, cut off, encrypted, of another format, claims more
            than it holds, or holds anything but arrays of numbers and texts.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"Expected an .npz file. Received: {path}, which does not exist.")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"Expected an .npz file. Received: {path}, which is {what}.")
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
            else "which is of another format; write one with np.savez(path, x=x, y=y)"
        )
        raise DataError(f"Expected an .npz file. Received: {path}, {what}.")
    arrays: dict[str, np.ndarray] = {}
    name = "its list of arrays"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_sizes(path, members)
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise DataError(f"Expected one array {name!r} in {path}. Received: several.")
                arrays[name] = _read_member(archive, member, path, name)
    except DataError:
        raise
    except _FAULTS as error:
        reason = to_line(error)[:200] or type(error).__name__
        raise DataError(
            f"{path} is damaged: {name!r} cannot be read ({reason}). Copy or make it again."
        ) from error
    if not arrays:
        raise DataError(f"Expected arrays in {path}. Received: an .npz file without any.")
    return arrays


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    unpacked = sum(member.file_size for member in members)
    packed = path.stat().st_size
    if unpacked > max(_ALWAYS_ALLOWED_BYTES, _MOST_RATIO * packed):
        raise DataError(
            f"{path} is damaged or made to do harm: its {packed:,} bytes would unpack to "
            f"{unpacked:,}. Expected at most {_MOST_RATIO} times its size. If it is sound, write "
            "it without compression, with np.savez."
        )


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str
) -> np.ndarray:
    if member.flag_bits & 0x1:
        raise DataError(
            f"{name!r} in {path} is encrypted. Expected an .npz file without a password, as "
            "np.savez writes it."
        )
    with archive.open(member) as file:
        if file.read(6) != b"\x93NUMPY":
            raise DataError(
                f"Expected only arrays in {path}. Received: a file {name!r}. "
                "Write it with np.savez(path, x=x, y=y)."
            )
    with archive.open(member) as file:
        shape, dtype, header_bytes = _read_header(file)
    if dtype.hasobject:
        raise DataError(
            f"{name!r} in {path} holds Python objects (a ragged list?), which are not read "
            "because they could run code. Save arrays of numbers of one shape."
        )
    if dtype.kind not in _KINDS or not dtype.itemsize:
        raise DataError(
            f"Expected arrays of numbers in {path}. Received: {name!r} of dtype {str(dtype)[:60]}. "
            "Convert it to integers or floats first."
        )
    claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - header_bytes
    if any(type(size) is not int or size < 0 for size in shape) or claimed != held:
        raise DataError(
            f"{path} is damaged: {name!r} claims the shape {str(shape)[:60]} of {dtype!s} "
            f"({_count(claimed)} bytes), but holds {held:,} bytes. Copy or make it again."
        )
    with archive.open(member) as file:
        # allow_pickle=False: a pickle in an untrusted file would run its code here.
        array: np.ndarray = np.lib.format.read_array(
            file, allow_pickle=False, max_header_size=_MOST_HEADER_BYTES
        )
        file.read(1)  # the end of the member, where its checksum is compared
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Returns shape and dtype of an array, and the number of bytes before its values."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:  # 3.0 is for records whose fields have names beyond Latin-1
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = read(file, max_header_size=_MOST_HEADER_BYTES)
    return shape, dtype, file.tell()


def _count(number: int) -> str:
    return f"{number:,}" if abs(number) < 10**15 else "over 10^15"
