"""What the bytes of a .tflite file are for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.lite.flatbuffer import FileTensor, Operator
from kdtflite.lite.flatbuffer_tree import TreeReader
from kdtflite.lite.operators import BIAS_POSITION
from kdtflite.results import Axes, Result, Table, make_table, plot_bars

__all__ = ["SizeAccount", "count_bytes"]

_PARTS = (
    "weights",
    "biases",
    "other_constants",
    "scales",
    "zero_points",
    "ranges",
    "names",
    "tables",
    "metadata",
    "unused",
)
_TABLES, _UNUSED = _PARTS.index("tables"), _PARTS.index("unused")
# Vectors by table and slot; all others, such as shapes and lists of operators, are "tables".
_VECTORS = {
    ("QuantizationParameters", 0): "ranges",
    ("QuantizationParameters", 1): "ranges",
    ("QuantizationParameters", 2): "scales",
    ("QuantizationParameters", 3): "zero_points",
    ("Tensor", 3): "names",
    ("TensorMap", 0): "names",
    ("SignatureDef", 2): "names",
    ("SubGraph", 4): "names",
    ("Model", 3): "metadata",
    ("Metadata", 0): "metadata",
    ("Metadata", -1): "metadata",
}
_WITHOUT_VALUES = frozenset({"bool", "int32", "int64", "uint32", "uint64", "string"})


@dataclass(frozen=True)
class SizeAccount(Result):
    """The bytes of a file by what they are for; they add up to its size.

    A part that several tensors share counts once.

    Attributes:
        weights: Values of weights.
        biases: Values of biases.
        other_constants: Shapes, axes, paddings and the like.
        scales: Quantization scales.
        zero_points: Quantization zero points.
        ranges: The ranges that scales were computed from; no kernel reads them.
        names: Names of tensors, inputs, outputs, signatures and subgraphs.
        tables: Everything that holds the file together: operators and their options, shapes,
            dtypes, and offsets.
        metadata: The description, metadata entries and associated files.
        unused: Bytes that nothing refers to: those that align others, and what was replaced.
        total: The file's size.
    """

    weights: int
    biases: int
    other_constants: int
    scales: int
    zero_points: int
    ranges: int
    names: int
    tables: int
    metadata: int
    unused: int
    total: int

    def to_table(self) -> Table:
        """Returns one row per part that the file has, and their sum."""
        rows = [
            (name, f"{count:,}", f"{count / self.total:.1%}") for name, count in self._list_parts()
        ]
        rows.append(("total", f"{self.total:,}", "100.0%"))
        return make_table(rows, text=("part",), numbers=("bytes", "share"))

    def summary(self) -> str:
        """Returns the share of the values that kernels compute with."""
        values = self.weights + self.biases + self.other_constants
        return (
            f"{values:,} of {self.total:,} bytes ({values / self.total:.0%}) are weights, biases "
            "and other constants."
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws one bar per part.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        return plot_bars(list(self._list_parts()), "Bytes", ax)

    def _list_parts(self) -> Iterator[tuple[str, int]]:
        for part in _PARTS:
            if count := getattr(self, part):
                yield part.replace("_", " "), count


def count_bytes(
    content: bytes, tensors: Sequence[FileTensor], operators: Sequence[Operator]
) -> SizeAccount:
    """Counts what the bytes of a sound file are for.

    Args:
        content: The file.
        tensors: Its tensors.
        operators: Its operators.
    """
    from ai_edge_litert import schema_py_generated as schema

    reader = TreeReader(content, schema)
    # With fields of a newer schema, what is not read counts as unused.
    with contextlib.suppress(ValueError):
        reader.read("Model")
    model = schema.Model.GetRootAs(content, 0)
    buffers = dict(_find_buffers(model, tensors, operators))
    owners = np.full(len(content), _UNUSED, np.uint8)
    # What refers to others first, so that a vector counts as what it is.
    for span in sorted(reader.spans, key=lambda span: span.slot >= 0):
        part = _VECTORS.get((span.table, span.slot), "tables")
        if (span.table, span.slot) == ("Buffer", 0):
            part = buffers.get(span.start, "other_constants")
        owners[span.start : span.stop] = _PARTS.index(part)
    end = max(span.stop for span in reader.spans)
    if content[end:].lstrip(b"\0").startswith(b"PK"):  # an archive of associated files
        owners[end:] = _PARTS.index("metadata")
    counts = np.bincount(owners, minlength=len(_PARTS)).tolist()
    return SizeAccount(**dict(zip(_PARTS, counts, strict=True)), total=len(content))


def _find_buffers(
    model: Any, tensors: Sequence[FileTensor], operators: Sequence[Operator]
) -> Iterator[tuple[int, str]]:
    """Yields the position of each stored vector of values, and what it is."""
    biases = {
        (operator.subgraph, index)
        for operator in operators
        for position in [BIAS_POSITION.get(operator.name, len(operator.inputs))]
        for index in operator.inputs[position : position + 1]
    }
    for tensor in tensors:
        position = _find_values(
            model, model.Subgraphs(tensor.subgraph).Tensors(tensor.index).Buffer()
        )
        if (tensor.subgraph, tensor.index) in biases:
            yield position, "biases"
        elif tensor.dtype in _WITHOUT_VALUES:
            yield position, "other_constants"
        else:
            yield position, "weights"
    for i in range(model.MetadataLength()):
        yield _find_values(model, model.Metadata(i).Buffer()), "metadata"


def _find_values(model: Any, number: int) -> int:
    """Returns the position of a buffer's vector, its length included; -1 if it has none."""
    table = model.Buffers(number)._tab
    at = table.Offset(4)
    return int(table.Vector(at)) - 4 if at else -1
