"""Adds a metadata entry to a .tflite file without touching a byte of what is there."""

from __future__ import annotations

from typing import Any

import flatbuffers
from flatbuffers.encode import Get
from flatbuffers.number_types import SOffsetTFlags, VOffsetTFlags
from flatbuffers.packer import uoffset

from kdtflite.errors import ModelFileError

__all__ = ["add_metadata_entry"]

_ALIGNMENT = 16  # which the schema demands of weights
# Fields of a Model in LiteRT 2.3's schema; all but the first, its version, are offsets.
_FIELDS = 10
_BUFFERS, _METADATA, _EXTERNAL = 4, 6, (8, 9)


def add_metadata_entry(content: bytes, name: str, data: bytes) -> bytes:
    """Returns a sound .tflite file with one more metadata entry; its own bytes stay at the end.

    Unpacking a file and packing it again, as other writers do, loses the alignment of its weights
    and everything that their schema does not know. But a flatbuffer is built from its end: the
    existing bytes count as already built, and only the root and the lists of buffers and of
    metadata entries are new.

    Args:
        content: The file.
        name: Name of the entry.
        data: Its bytes.

    Raises:
        ModelFileError: The file keeps its weights behind the flatbuffer, or has a newer schema.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    root = flatbuffers.table.Table(content, Get(uoffset, content, 0))
    _check_extensible(model, root)
    size = len(content) + -len(content) % _ALIGNMENT
    builder = flatbuffers.Builder(0)
    builder.Bytes, builder.head = bytearray(content).ljust(size, b"\0"), 0
    builder.minalign = _ALIGNMENT

    def extend(field: int, table: int) -> int:
        """Rebuilds the list at a field of the root with one more table."""
        at = root.Offset(_vtable_offset(field))
        count = root.VectorLen(at) if at else 0
        tables = [size - root.Indirect(root.Vector(at) + 4 * i) for i in range(count)]
        builder.StartVector(4, count + 1, 4)
        for place in reversed([*tables, table]):
            builder.PrependUOffsetTRelative(place)
        return int(builder.EndVector())

    builder.StartVector(1, len(data), _ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    stored = builder.EndVector()
    schema.BufferStart(builder)
    schema.BufferAddData(builder, stored)
    buffers = extend(_BUFFERS, schema.BufferEnd(builder))
    text = builder.CreateString(name)
    schema.MetadataStart(builder)
    schema.MetadataAddName(builder, text)
    schema.MetadataAddBuffer(builder, model.BuffersLength())
    entries = extend(_METADATA, schema.MetadataEnd(builder))
    new = {_BUFFERS: buffers, _METADATA: entries}
    builder.StartObject(_FIELDS)
    builder.PrependUint32Slot(0, model.Version(), 0)
    for field in range(1, _FIELDS):
        at = root.Offset(_vtable_offset(field))
        place = size - root.Indirect(root.Pos + at) if at else 0
        builder.PrependUOffsetTRelativeSlot(field, new.get(field, place), 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    return bytes(builder.Output())


def _vtable_offset(field: int) -> int:
    return 4 + 2 * field  # in a vtable, behind its own size and the table's


def _check_extensible(model: Any, root: Any) -> None:
    offsets = root.Pos - root.Get(SOffsetTFlags, root.Pos)
    newer = root.Get(VOffsetTFlags, offsets) > _vtable_offset(_FIELDS)
    external = any(root.Offset(_vtable_offset(field)) for field in _EXTERNAL) or any(
        model.Buffers(i).Offset() > 1 for i in range(model.BuffersLength())
    )
    if newer or external:
        raise ModelFileError(
            "Metadata cannot be added to a file "
            + (
                "in a newer format than LiteRT 2.3's."
                if newer
                else "over 2 GB, whose weights are stored behind the model."
            )
        )
