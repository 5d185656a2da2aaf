"""A .tflite file as a tree of tables and vectors, which can be compared and written again."""

from __future__ import annotations

import functools
import struct
from typing import Any, NamedTuple

from kdtflite.lite.flatbuffer_layout import LAYOUT, UNIONS

__all__ = ["Field", "Span", "Table", "Tables", "TreeReader", "Vector"]

WEIGHT_ALIGNMENT = 16  # which the schema demands of weights, and XNNPACK reads them by
_read_unsigned = struct.Struct("<I").unpack_from
_read_signed = struct.Struct("<i").unpack_from
_read_sizes = struct.Struct("<HH").unpack_from


class Vector(NamedTuple):
    """A vector of numbers, or a text.

    Attributes:
        width: Bytes per element.
        data: Its elements.
        alignment: What the position of its first element is a multiple of.
        is_text: Whether a zero byte follows, which does not count.
    """

    width: int
    data: bytes
    alignment: int
    is_text: bool = False


class Tables(NamedTuple):
    """A vector of tables."""

    tables: tuple[Table, ...]


class Table(NamedTuple):
    """A table: the fields that it has, by slot; a number is kept as its bytes."""

    name: str
    fields: tuple[tuple[int, Field], ...]

    def get(self, slot: int) -> Any:
        """Returns a field, or None if it is left out."""
        return dict(self.fields).get(slot)

    def replace(self, slot: int, value: Field | None) -> Table:
        """Returns the table with another value in a slot; None leaves the field out."""
        fields = dict(self.fields)
        fields.pop(slot, None)
        if value is not None:
            fields[slot] = value
        return Table(self.name, tuple(sorted(fields.items(), key=lambda field: field[0])))


Field = bytes | Vector | Tables | Table


class Span(NamedTuple):
    """A stretch of a file: a table's own fields, its list of offsets, or one of its vectors.

    Attributes:
        start: Its first byte.
        stop: The first byte behind it.
        table: Name of the table.
        slot: The slot of the vector; -1 for the table itself.
    """

    start: int
    stop: int
    table: str
    slot: int = -1


class TreeReader:
    """Reads a sound flatbuffer (see `verify_flatbuffer`), each part once.

    Attributes:
        spans: Where each part lies.

    Args:
        content: The file; other data may follow the flatbuffer.
        schema: The generated module of its schema.
    """

    def __init__(self, content: bytes, schema: Any) -> None:
        self._content = content
        self._schema = schema
        self._known: dict[tuple[int, str, int], Any] = {}
        self.spans: list[Span] = [Span(0, 8, "")]

    def read(self, root: str) -> Table:
        """Returns the root table.

        Args:
            root: Its name in `LAYOUT`.

        Raises:
            ValueError: A table has fields that the schema does not know.
        """
        return self._read_table(self._follow(0), root)

    def _follow(self, position: int) -> int:
        return position + int(_read_unsigned(self._content, position)[0])

    def _read_table(self, position: int, name: str) -> Table:
        key = (position, name, -1)
        if key not in self._known:
            self._known[key] = self._read_new_table(position, name)
        found: Table = self._known[key]
        return found

    def _read_new_table(self, position: int, name: str) -> Table:
        vtable = position - _read_signed(self._content, position)[0]
        vtable_size, size = _read_sizes(self._content, vtable)
        self.spans += [
            Span(vtable, vtable + vtable_size, name),
            Span(position, position + size, name),
        ]
        count = (vtable_size - 4) // 2
        offsets = struct.unpack_from(f"<{count}H", self._content, vtable + 4)
        if any(offsets[_count_slots(self._schema, name) :]):
            # They may refer to other parts of the file.
            raise ValueError(f"a table {name or 'of an unknown kind'} has unknown fields")
        kinds = LAYOUT.get(name, {})
        ends = sorted({*filter(None, offsets), size})
        fields: list[tuple[int, Field]] = []
        for slot, offset in enumerate(offsets):
            if not offset:
                continue
            kind = kinds.get(slot, 0)
            if isinstance(kind, str):
                value = self._read_field(position, offsets, name, slot, kind)
            else:
                end = next((end for end in ends if end > offset), size)
                width = kind or _find_width(position + offset, end - offset)
                value = self._content[position + offset : position + offset + width]
            if value is not None:
                fields.append((slot, value))
        return Table(name, tuple(fields))

    def _read_field(
        self, table: int, offsets: tuple[int, ...], name: str, slot: int, kind: str
    ) -> Field | None:
        target = self._follow(table + offsets[slot])
        if kind.startswith("union "):
            typed = int(kind[6:])
            at = offsets[typed] if typed < len(offsets) else 0
            chosen = self._content[table + at] if at else 0
            names = _list_types(self._schema, UNIONS[name, slot])
            # Without a type there is nothing to read.
            return self._read_table(target, names.get(chosen, "")) if chosen else None
        if kind.endswith("[]"):
            count = _read_unsigned(self._content, target)[0]
            self.spans.append(Span(target, target + 4 + 4 * count, name, slot))
            places = (self._follow(target + 4 + 4 * i) for i in range(count))
            return Tables(tuple(self._read_table(place, kind[:-2]) for place in places))
        if kind == "text" or kind.startswith("bytes×"):
            key = (target, name, slot)
            if key not in self._known:
                self._known[key] = self._read_vector(target, name, slot, kind)
            vector: Vector = self._known[key]
            return vector
        return self._read_table(target, kind)

    def _read_vector(self, position: int, name: str, slot: int, kind: str) -> Vector:
        is_text = kind == "text"
        width = 1 if is_text else int(kind[6:])
        start = position + 4
        stop = start + width * _read_unsigned(self._content, position)[0]
        self.spans.append(Span(position, stop + is_text, name, slot))
        is_buffer = (name, slot) == ("Buffer", 0)
        alignment = WEIGHT_ALIGNMENT if is_buffer else max(4, width)
        return Vector(width, self._content[start:stop], alignment, is_text)


class _SlotCounter:
    """Stands in for a builder, and keeps how many slots a table has."""

    slots = 0

    def StartObject(self, slots: int) -> None:  # noqa: N802 - the builder's own name
        self.slots = slots


@functools.cache
def _count_slots(schema: Any, name: str) -> int:
    start = getattr(schema, f"{name}Start", None)
    counter = _SlotCounter()
    if start is not None:
        start(counter)
    return counter.slots


@functools.cache
def _list_types(schema: Any, union: str) -> dict[int, str]:
    enumeration = vars(getattr(schema, union))
    return {value: name for name, value in enumeration.items() if not name.startswith("_")}


def _find_width(position: int, room: int) -> int:
    """Returns the most bytes that a number at a position can have."""
    width = 8
    while width > room or position % width:
        width //= 2
    return width
