"""Writes a tree of tables and vectors as a flatbuffer in which equal parts stand once."""

from __future__ import annotations

import struct

from kdtflite.lite.flatbuffer_tree import WEIGHT_ALIGNMENT, Table, Tables, Vector

__all__ = ["write_tree"]


def write_tree(root: Table, identifier: bytes) -> bytes:
    """Returns a flatbuffer.

    Equal tables, vectors, texts and lists of offsets are written once: the format lets any number
    of tables refer to one. Two calls with equal trees return the same bytes.

    Args:
        root: The root table.
        identifier: The four bytes that say what kind of file it is.
    """
    writer = _Writer()
    place = writer.place(root)
    start = writer.reserve(8, WEIGHT_ALIGNMENT)
    writer.append(struct.pack("<I", start - place) + identifier)
    return writer.join()


class _Writer:
    """Builds a flatbuffer from its end, so that whatever is referred to is there already.

    A place is counted from the end, where the size of the whole does not matter.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._places: dict[Table | Tables | Vector | bytes, int] = {}

    def place(self, node: Table | Tables | Vector) -> int:
        """Returns where a node stands; writes it unless an equal one stands already."""
        if node not in self._places:
            if isinstance(node, Vector):
                place = self._write_vector(node)
            elif isinstance(node, Tables):
                place = self._write_tables(node)
            else:
                place = self._write_table(node)
            self._places[node] = place
        return self._places[node]

    def reserve(self, size: int, alignment: int, at: int = 0) -> int:
        """Returns the place for a part of `size` bytes whose byte `at` is to be aligned."""
        padding = -(self._size + size - at) % alignment
        self.append(bytes(padding))
        return self._size + size

    def append(self, part: bytes) -> None:
        """Writes a part before all others."""
        self._parts.append(part)
        self._size += len(part)

    def join(self) -> bytes:
        """Returns the whole."""
        return b"".join(reversed(self._parts))

    def _write_vector(self, vector: Vector) -> int:
        count = len(vector.data) // vector.width
        part = struct.pack("<I", count) + vector.data + bytes(vector.is_text)
        place = self.reserve(len(part), vector.alignment, at=4)
        self.append(part)
        return place

    def _write_tables(self, tables: Tables) -> int:
        places = [self.place(table) for table in tables.tables]
        start = self.reserve(4 + 4 * len(places), 4)
        offsets = [start - 4 - 4 * i - place for i, place in enumerate(places)]
        self.append(struct.pack(f"<{1 + len(places)}I", len(places), *offsets))
        return start

    def _write_table(self, table: Table) -> int:
        places = {
            slot: self.place(value) for slot, value in table.fields if not isinstance(value, bytes)
        }
        # Wide fields first, so that nothing but the first needs padding; equal widths by slot.
        widths = {slot: 4 if slot in places else len(value) for slot, value in table.fields}
        offsets: dict[int, int] = {}
        size = 4
        for slot in sorted(widths, key=lambda slot: (-widths[slot], slot)):
            offsets[slot] = size
            size += widths[slot]
        vtable = self._place_offsets(offsets, size)
        wide = 8 in widths.values()
        start = self.reserve(size, 8 if wide else 4, at=4 if wide else 0)
        values = dict(table.fields)
        part = struct.pack("<i", vtable - start)
        for slot, offset in offsets.items():
            value = values[slot]
            if slot in places:
                part += struct.pack("<I", start - offset - places[slot])
            elif isinstance(value, bytes):
                part += value
        self.append(part)
        return start

    def _place_offsets(self, offsets: dict[int, int], size: int) -> int:
        """Returns the place of a table's list of offsets, by slot."""
        count = max(offsets, default=-1) + 1
        listed = [offsets.get(slot, 0) for slot in range(count)]
        part = struct.pack(f"<{2 + count}H", 4 + 2 * count, size, *listed)
        if part not in self._places:
            self.reserve(len(part), 2)
            self.append(part)
            self._places[part] = self._size
        return self._places[part]
