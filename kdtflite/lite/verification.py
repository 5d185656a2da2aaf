"""Checks that everything in a flatbuffer lies inside it, before anything follows an offset."""

from __future__ import annotations

import struct
from typing import Any

from kdtflite.lite.flatbuffer_layout import LAYOUT, UNIONS

__all__ = ["verify_flatbuffer"]

_read_unsigned = struct.Struct("<I").unpack_from
_read_signed = struct.Struct("<i").unpack_from
_read_sizes = struct.Struct("<HH").unpack_from
# Tables of later versions may have more fields than these; no table has as many as this.
_MAX_SLOTS = 64


def verify_flatbuffer(content: bytes, schema: Any, root: str) -> None:
    """Raises unless every table, vector and text of a flatbuffer lies inside `content`.

    Args:
        content: The flatbuffer; other data may follow it.
        schema: The generated module with the enumerations of its unions.
        root: Name of its root table in `LAYOUT`.

    Raises:
        ValueError: Something lies outside, or tables refer to each other without end.
        struct.error: A number itself lies outside.
    """
    verifier = _Verifier(content, schema)
    verifier.check_table(verifier.follow(0), root)


class _Verifier:
    def __init__(self, content: bytes, schema: Any) -> None:
        self._content = content
        self._size = len(content)
        # A table takes at least eight bytes. More visits than this mean that a small file
        # unfolds into a huge one, as tables may be shared.
        self._visits_left = len(content)
        self._types = {
            union: {value: name for name, value in vars(enumeration).items() if name[0] != "_"}
            for union in set(UNIONS.values())
            if (enumeration := getattr(schema, union, None)) is not None
        }

    def follow(self, position: int) -> int:
        """Returns where the offset at a position points."""
        target: int = position + _read_unsigned(self._content, position)[0]
        if target >= self._size:
            raise ValueError("an offset points outside of it")
        return target

    def check_table(self, position: int, name: str) -> None:
        """Checks a table and everything below it."""
        vtable = position - _read_signed(self._content, position)[0]
        if vtable < 0:
            raise ValueError("an offset points outside of it")
        vtable_size, size = _read_sizes(self._content, vtable)
        if (
            vtable_size < 4
            or size < 4
            or vtable + vtable_size > self._size
            or position + size > self._size
        ):
            raise ValueError(f"the table {name} does not fit into it")
        count = min((vtable_size - 4) // 2, _MAX_SLOTS)
        self._visits_left -= 1 + count // 8
        if self._visits_left < 0:
            raise ValueError("its tables refer to each other too often")
        kinds = LAYOUT.get(name, {})
        offsets = struct.unpack_from(f"<{count}H", self._content, vtable + 4)
        for slot, offset in enumerate(offsets):
            if not offset:
                continue
            kind = kinds.get(slot, 1)
            if offset < 4 or offset + (kind if isinstance(kind, int) else 4) > size:
                raise ValueError(f"field {slot} of a table {name} lies outside of the table")
            if isinstance(kind, str):
                self._check_field(position, offsets, name, slot, kind)

    def _check_field(
        self, table: int, offsets: tuple[int, ...], name: str, slot: int, kind: str
    ) -> None:
        target = self.follow(table + offsets[slot])
        if kind == "text":
            self._check_vector(target, 1, name)
        elif kind.startswith("bytes×"):
            # Stored values stay bytes; everything else becomes Python objects.
            self._check_vector(target, int(kind[6:]), name, is_data=kind == "bytes×1")
        elif kind.endswith("[]"):
            self._check_vector(target, 4, name)
            for i in range(_read_unsigned(self._content, target)[0]):
                self.check_table(self.follow(target + 4 + 4 * i), kind[:-2])
        elif kind.startswith("union "):
            typed = int(kind[6:])
            at = offsets[typed] if typed < len(offsets) else 0
            chosen = self._content[table + at] if at else 0
            if chosen:
                types = self._types.get(UNIONS[name, slot], {})
                self.check_table(target, types.get(chosen, ""))
        else:
            self.check_table(target, kind)

    def _check_vector(self, position: int, width: int, name: str, *, is_data: bool = False) -> None:
        count = _read_unsigned(self._content, position)[0]
        if position + 4 + width * count > self._size:
            raise ValueError(f"a vector of a table {name} does not fit into it")
        if not is_data:
            self._visits_left -= count // 4
