"""Rows of arrays in memory or on disk, gathered inside a graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import tensorflow as tf

__all__ = ["Table"]

# Larger tables are read from mapped files. From smaller ones, TensorFlow gathers rows of one
# tensor, without Python.
_IN_MEMORY = 2**30
_OPEN_FILES = 128


class Table:
    """Arrays, concatenated along their first axis.

    Args:
        parts: Arrays, or paths of .npy files.
        sizes: Number of rows in each.
        dtype: Dtype of the returned rows; by default that of the arrays.
    """

    def __init__(
        self,
        parts: Sequence[np.ndarray | Path],
        sizes: Sequence[int],
        dtype: np.dtype | None = None,
    ) -> None:
        self._parts = parts
        self._ends = np.cumsum(sizes)
        first = _open(parts[0])
        self._dtype = np.dtype(dtype or first.dtype)
        self._shape = first.shape[1:]
        row = int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize
        self._tensor: tf.Tensor | None = None
        if row * int(self._ends[-1]) <= _IN_MEMORY or self._dtype.kind in "OSU":
            with tf.device("CPU"):
                self._tensor = tf.constant(self._take(None))

    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the rows, shape (batch, ...), for their indices, shape (batch,), int64."""
        if self._tensor is not None:
            return tf.gather(self._tensor, rows)
        # One call of Python per batch.
        found = tf.numpy_function(self._take, [rows], self._dtype, stateful=False)
        return tf.ensure_shape(found, (rows.shape[0], *self._shape))

    def _take(self, rows: np.ndarray | None) -> np.ndarray:
        if rows is None:
            arrays = [_open(part) for part in self._parts]
            whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            return whole if whole.dtype.kind in "OSU" else whole.astype(self._dtype, copy=False)
        if len(self._parts) == 1:
            return _open(self._parts[0])[rows].astype(self._dtype, copy=False)
        taken = np.empty((len(rows), *self._shape), self._dtype)
        part_of = np.searchsorted(self._ends, rows, side="right")
        for part in np.unique(part_of):
            here = part_of == part
            before = self._ends[part - 1] if part else 0
            taken[here] = _open(self._parts[part])[rows[here] - before]
        return taken


def _open(part: np.ndarray | Path) -> np.ndarray:
    return part if isinstance(part, np.ndarray) else _map_file(part)


# A file stays open while it is mapped.
@lru_cache(_OPEN_FILES)
def _map_file(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
