"""How large the contents of a file may be, measured by the file itself."""

from __future__ import annotations

import os

from kdtflite.errors import ModelFileError

__all__ = ["allow_bytes", "refuse_larger", "show_bytes"]

# Keras stores weights uncompressed. Compressed ones shrink little, pruned ones to a tenth.
_EXPANSION = 20
_FLOOR = 64 << 20


def allow_bytes(stored: int) -> int:
    """Returns how many bytes may be declared by, or unpacked from, `stored` bytes."""
    return _FLOOR + _EXPANSION * stored


def refuse_larger(
    declared: int, stored: int, *, path: str | os.PathLike[str], what: str, unsafe: bool = False
) -> None:
    """Raises if a file declares far more bytes than it holds.

    Args:
        declared: The bytes that reading it would take.
        stored: The bytes on disk.
        path: The file, for the message.
        what: What declares them, for the message.
        unsafe: Allow it.

    Raises:
        ModelFileError: `declared` is more than `allow_bytes(stored)`.
    """
    if declared > allow_bytes(stored) and not unsafe:
        raise ModelFileError(
            f"{path} is too large to be read: {what} would take {show_bytes(declared)} of memory. "
            f"Expected at most {show_bytes(allow_bytes(stored))} for the {show_bytes(stored)} that "
            "are stored. Save the model again with model.save(), or pass unsafe=True / --unsafe if "
            "you trust the file."
        )


def show_bytes(count: int) -> str:
    """Returns a number of bytes as people write it: "64 MiB"."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"
