"""Checks a zip archive before anything in it is unpacked."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import PurePosixPath

from kdtflite.errors import ModelFileError
from kdtflite.models.trust.sizes import refuse_larger

__all__ = ["check_archive"]

_MOST_MEMBERS = 10_000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


def check_archive(
    archive: zipfile.ZipFile, path: str | os.PathLike[str], *, unsafe: bool = False
) -> None:
    """Raises if unpacking an archive would write elsewhere, or take far more space than it does.

    `zipfile` unpacks no more of a member than it declares, so the declared sizes are bounds.

    Args:
        archive: The opened archive.
        path: Its file.
        unsafe: Allow any size.

    Raises:
        ModelFileError: A member has a name that leads out of the archive, occurs twice, is a link,
            is encrypted or compressed by a rare method; or the members are too many or too large.
    """
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise ModelFileError(
            f"{path} is too large to be read: it has {len(members):,} members. Expected at most "
            f"{_MOST_MEMBERS:,}."
        )
    seen: set[str] = set()
    for member in members:
        why = _find_fault(member)
        if member.filename in seen:
            why = "occurs twice"
        seen.add(member.filename)
        if why:
            raise ModelFileError(
                f"{path} is not a Keras file as model.save() writes it: its member "
                f"{member.filename[:100]!r} {why}. Save the model again with model.save()."
            )
    refuse_larger(
        sum(member.file_size for member in members),
        os.stat(path).st_size,
        path=path,
        what="unpacking it",
        unsafe=unsafe,
    )


def _find_fault(member: zipfile.ZipInfo) -> str | None:
    name = member.filename
    if name.startswith("/") or "\\" in name or ":" in name.split("/")[0]:
        return "has an absolute name"
    if ".." in PurePosixPath(name).parts:
        return "has a name that leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if member.compress_type not in _METHODS:
        return f"is compressed by method {member.compress_type}, neither stored nor deflated"
    return None
