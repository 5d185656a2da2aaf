"""Memory that a file's intermediate results need."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdtflite.lite.model import LiteModel

__all__ = ["arena_bytes", "count_covered_bytes"]

# The allocator aligns tensors to 64 bytes; a smaller hole between two is padding, not free space.
_ALIGNMENT = 64


def arena_bytes(model: LiteModel) -> int:
    """Returns the bytes that LiteRT's allocator lays out for everything but the constants.

    Measured, not planned: after one invoke with the built-in kernels, the address and size of
    every tensor without stored values is asked of the interpreter (inputs, outputs, activations,
    the kernels' scratch buffers such as im2col, variables), and the union of those ranges is
    the answer: tensors that share memory at different times count once. With the delegate there
    is nothing to ask, as XNNPACK keeps its intermediate results to itself.

    Not counted: the file itself, what a kernel allocates on its own, and the interpreter's
    bookkeeping.
    """
    constant = {t.index for t in model.tensors if t.subgraph == 0 and t.is_constant}
    interpreter = model.run_on_zeros(xnnpack=False)
    ranges = []
    for detail in interpreter.get_tensor_details():
        if detail["index"] in constant:
            continue
        try:
            # The view must not outlive this line: the interpreter refuses work while it exists.
            start, size = _locate(interpreter.tensor(detail["index"])())
        except ValueError:
            continue  # no memory: scratch that this kernel did not need after all
        ranges.append((start, start + size))
    return count_covered_bytes(ranges, hole=_ALIGNMENT)


def count_covered_bytes(ranges: list[tuple[int, int]], *, hole: int = 0) -> int:
    """Returns how many bytes the ranges (start, end) cover together.

    Args:
        ranges: First byte and the one past the last; they may overlap.
        hole: Holes smaller than this count as covered.
    """
    total, reached = 0, None
    for start, end in sorted(r for r in ranges if r[1] > r[0]):
        if reached is None or start - reached >= hole > 0 or (hole == 0 and start > reached):
            total += end - start
            reached = end
        elif end > reached:
            total += end - reached
            reached = end
    return total


def _locate(view: Any) -> tuple[int, int]:
    array = np.asarray(view)
    return array.ctypes.data, array.nbytes
