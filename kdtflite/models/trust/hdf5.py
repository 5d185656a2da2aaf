"""Checks how an HDF5 file stores its values before any of them is read.

HDF5 can take values from any other file, join datasets of other files, link to anything, and
declare arrays that it does not hold. Weights need none of this.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdtflite.errors import ModelFileError
from kdtflite.models.trust.sizes import refuse_larger

if TYPE_CHECKING:
    import h5py

__all__ = ["check_storage", "measure_longest_text"]

# The filters of HDF5 itself and of h5py; others are libraries that HDF5 searches and loads.
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset"}
_LZF = 32000
_MOST_IN_LISTS = 1 << 30


def check_storage(
    file: h5py.File,
    path: str | os.PathLike[str],
    stored: int,
    *,
    longest: int | None = None,
    unsafe: bool = False,
) -> int:
    """Raises if a file takes values from elsewhere, or declares far more than it holds.

    Args:
        file: The opened file; none of its values is read.
        path: The file that holds it, for messages.
        stored: Its size on disk.
        longest: The most bytes that one text of varying length in it may have, as
            `measure_longest_text` finds it; None if no attribute may be a list of such texts.
        unsafe: Allow all of this.

    Returns:
        The bytes of all its datasets in memory.

    Raises:
        ModelFileError: The message names the dataset, link or attribute.
    """
    if longest is not None and file.id.get_create_plist().get_sizes() != (8, 8):
        longest = None  # `measure_longest_text` reads sizes of eight bytes, which all writers use
    total = 0
    for name, entry in _walk(file):
        fault = entry if isinstance(entry, str) else _find_fault(entry, longest)
        if fault and not unsafe:
            raise ModelFileError(
                f"{path} is not self-contained: {name[:200]!r} {fault}. Expected weights that the "
                "file itself holds, each once. Save the model again with model.save(), or pass "
                "unsafe=True / --unsafe if you trust the file."
            )
        if not isinstance(entry, str) and not fault:
            total += _count_bytes(entry)
            refuse_larger(total, stored, path=path, what="its weights", unsafe=unsafe)
    return total


def _walk(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Yields each dataset and group by name once, and each link that leads elsewhere as a fault.

    Not `visititems`, which calls nothing for links, so that they would go unseen.
    """
    import h5py

    groups, seen = [file["/"]], {h5py.h5o.get_info(file["/"].id).addr}
    while groups:
        group = groups.pop()
        yield group.name, group
        for name in group:
            full = f"{group.name.rstrip('/')}/{name}"
            try:
                link = group.get(name, getlink=True)
            except TypeError:  # a kind of link that a plug-in defines
                yield full, "is a link of an unknown kind"
                continue
            if isinstance(link, h5py.ExternalLink):
                yield full, f"is a link into the file {link.filename[:200]!r}"
                continue
            if isinstance(link, h5py.SoftLink):
                yield full, f"is a link to {link.path[:200]!r}"
                continue
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(entry, h5py.Group):
                groups.append(entry)
            elif isinstance(entry, h5py.Dataset):
                yield full, entry


def measure_longest_text(path: str | os.PathLike[str]) -> int:
    """Returns the size of the largest heap in an HDF5 file, a bound on every text in it.

    The elements of a list of texts may all be the same one, so that the list takes far more memory
    than the file has bytes; and HDF5 tells the length of none without reading all.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        starts = (match.start() for match in re.finditer(b"GCOL", content))
        # A signature, a version, three bytes, and the size in eight.
        sizes = (int.from_bytes(content[start + 8 : start + 16], "little") for start in starts)
        return max((size for size in sizes if size <= len(content)), default=0)


def _find_fault(entry: Any, longest: int | None) -> str | None:
    """Says what is wrong with a dataset or group, or returns None."""
    import h5py

    for name in entry.attrs:
        attribute = entry.attrs.get_id(name)
        kind = attribute.get_type()
        if attribute.shape == () or not _varies(kind):
            continue
        if longest is None or not isinstance(kind, h5py.h5t.TypeStringID):
            return f"has the attribute {name[:100]!r}, a list of values of varying length"
        count = attribute.get_space().get_simple_extent_npoints()
        if count * longest > _MOST_IN_LISTS:
            return f"has the attribute {name[:100]!r}, {count:,} texts of up to {longest:,} bytes"
    if isinstance(entry, h5py.Group):
        return None
    properties = entry.id.get_create_plist()
    if entry.is_virtual:
        return "is a virtual dataset, with its values in other datasets"
    if properties.get_external_count():
        return f"has its values in the file {_name_external(properties)!r}"
    for place in range(properties.get_nfilters()):
        code = properties.get_filter(place)[0]
        if code not in _FILTERS and code != _LZF:
            return f"is compressed by a filter that needs a library (number {code})"
    if _varies(entry.id.get_type()):
        return "holds values of varying length or references, not numbers"
    return None


def _name_external(properties: Any) -> str:
    name = properties.get_external(0)[0]
    return str(name.decode(errors="replace") if isinstance(name, bytes) else name)[:200]


def _varies(kind: Any) -> bool:
    import h5py

    if isinstance(kind, h5py.h5t.TypeVlenID | h5py.h5t.TypeReferenceID):
        return True
    if isinstance(kind, h5py.h5t.TypeStringID):
        return bool(kind.is_variable_str())
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        return any(_varies(kind.get_member_type(i)) for i in range(kind.get_nmembers()))
    return isinstance(kind, h5py.h5t.TypeArrayID) and _varies(kind.get_super())


def _count_bytes(entry: Any) -> int:
    import h5py

    if isinstance(entry, h5py.Group):
        return 0
    space = entry.id.get_space().get_simple_extent_npoints()
    return int(space) * int(entry.id.get_type().get_size())
