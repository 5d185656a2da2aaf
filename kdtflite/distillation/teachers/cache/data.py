"""The data of a teacher cache, read in order: arrays or a tf.data.Dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from kdtflite.data.splits import Dataset, Split
from kdtflite.errors import DataError

__all__ = ["ArrayData", "Data", "SampleBatch", "StreamData", "as_data", "hash_rows", "to_fit_dtype"]

_HASHED_AT_ONCE = 2**26
_ALL = 2**62


class SampleBatch(NamedTuple):
    """A batch on its way to the teacher.

    Attributes:
        part: Number of its shard within a view.
        first: Row of its first sample.
        x: Samples, in their structure.
        marks: A hash of each sample, shape (batch,), int64; None for arrays.
    """

    part: int
    first: int
    x: Any
    marks: np.ndarray | None = None


class Data(Protocol):
    """The data from which a cache is written."""

    @property
    def kind(self) -> str:
        """The word "arrays" or "tf.data"."""

    @property
    def samples(self) -> int | None:
        """Number of samples; None before a tf.data.Dataset was read."""

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the samples; None before a tf.data.Dataset was read."""

    @property
    def specs(self) -> Any:
        """tf.TensorSpec of a batch of samples, in their structure."""

    def take(self, count: int) -> Any:
        """Returns at most `count` of the first samples, as tensors."""

    def choose_shard(self, samples: int) -> int:
        """Returns the number of samples (or batches) per shard for about `samples` in each."""

    def count_shards(self, shard: int) -> int | None:
        """Returns the number of shards per view; None before a tf.data.Dataset was read."""

    def read(
        self, shard: int, batch_size: int, is_wanted: Callable[[int], bool]
    ) -> Iterator[SampleBatch]:
        """Yields the batches of the wanted shards, in order.

        Args:
            shard: Samples (or batches) per shard.
            batch_size: Samples per batch, for arrays.
            is_wanted: Whether the shard with a number is wanted.
        """


def as_data(data: Any) -> ArrayData | StreamData:
    """Returns data that can be read again and again.

    Args:
        data: Samples; (x, y) or (x, y, sample_weight); a Split; the training split
            of a kdtflite Dataset; or a tf.data.Dataset of batches. Samples may be a dict or a
            tuple of arrays, for models with several inputs (a tuple inside (x, y) only).

    Raises:
        DataError: The data cannot be read in order, or their lengths differ.
    """
    if isinstance(data, Dataset):
        data = data.train
    if isinstance(data, Split):
        data = (data.x, data.y)
    if isinstance(data, tf.data.Dataset):
        return StreamData(data)
    if isinstance(data, Iterator):
        raise DataError(
            "Expected arrays or a tf.data.Dataset, which can be read again. Received: a "
            f"{type(data).__name__}. Make arrays of it, or tf.data.Dataset.from_generator(...)."
        )
    if not isinstance(data, tuple):
        data = (data,)
    if not 1 <= len(data) <= 3:
        raise DataError(
            "Expected data as (x, y) or (x, y, sample_weight). Received: a tuple of "
            f"{len(data)}. Put the samples of several inputs into a dict."
        )
    return ArrayData(*data)


class ArrayData:
    """Samples in arrays.

    Args:
        x: Samples, shape (samples, ...), or a dict, tuple or list of them.
        y: Labels, or None.
        sample_weight: Weights, or None.
    """

    kind = "arrays"

    def __init__(self, x: Any, y: Any = None, sample_weight: Any = None) -> None:
        self.x = _to_arrays(x)
        self.y = None if y is None else _to_arrays(y)
        self.sample_weight = None if sample_weight is None else _to_arrays(sample_weight)
        leaves = tf.nest.flatten([self.x, self.y, self.sample_weight])
        lengths = {len(leaf) if leaf.ndim else 0 for leaf in leaves if leaf is not None}
        if len(lengths) != 1 or lengths == {0}:
            raise DataError(
                "Expected arrays of samples, labels and weights of the same length, not empty. "
                f"Received lengths: {', '.join(map(str, sorted(lengths)))}."
            )
        self.samples = lengths.pop()
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the samples' bytes, shapes and dtypes, without labels."""
        if self._fingerprint is None:
            digest = hashlib.sha256(_join_names(self.x).encode())
            for array in tf.nest.flatten(self.x):
                digest.update(f"{array.shape}{array.dtype}".encode())
                rows = max(1, _HASHED_AT_ONCE * len(array) // max(array.nbytes, 1))
                for start in range(0, len(array), rows):
                    part = np.ascontiguousarray(array[start : start + rows])
                    digest.update(
                        repr(part.tolist()).encode() if part.dtype == object else part.data
                    )
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def specs(self) -> Any:  # noqa: D102
        return tf.nest.map_structure(
            lambda a: tf.TensorSpec((None, *a.shape[1:]), tf.as_dtype(to_fit_dtype(a[:1]).dtype)),
            self.x,
        )

    def take(self, count: int) -> Any:  # noqa: D102
        return self._rows(0, count)

    def choose_shard(self, samples: int) -> int:  # noqa: D102
        return samples

    def count_shards(self, shard: int) -> int | None:  # noqa: D102
        return -(-self.samples // shard)

    def read(  # noqa: D102
        self, shard: int, batch_size: int, is_wanted: Callable[[int], bool]
    ) -> Iterator[SampleBatch]:
        for part in filter(is_wanted, range(-(-self.samples // shard))):
            end = min((part + 1) * shard, self.samples)
            for first in range(part * shard, end, batch_size):
                yield SampleBatch(part, first, self._rows(first, min(first + batch_size, end)))

    def _rows(self, first: int, end: int) -> Any:
        return tf.nest.map_structure(lambda a: tf.constant(to_fit_dtype(a[first:end])), self.x)


class StreamData:
    """Batches of samples in a tf.data.Dataset that gives the same samples at every reading.

    Args:
        dataset: Finite; elements x, (x, y) or (x, y, sample_weight), batched.

    Raises:
        DataError: It is endless, empty, not batched, or has a structure that cannot be cached.
    """

    kind = "tf.data"

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self.samples: int | None = None
        self.fingerprint: str | None = None
        self.fingerprints: np.ndarray | None = None
        self.batches: int | None = None
        self.dataset = dataset
        self.element_spec = dataset.element_spec
        specs = tf.nest.flatten(self.element_spec)
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise DataError(
                "Expected a tf.data.Dataset that ends. Received: an endless one. Leave out "
                "repeat(); `batches` repeats the epochs."
            )
        if not all(isinstance(spec, tf.TensorSpec) and spec.shape.rank for spec in specs):
            raise DataError(
                "Expected a tf.data.Dataset of batches of dense tensors. Received: "
                f"{', '.join(map(str, specs))}. Call .batch(32) on it."
            )

    @property
    def specs(self) -> Any:  # noqa: D102
        return tf.nest.map_structure(
            lambda s: tf.TensorSpec((None, *s.shape[1:]), s.dtype), _get_inputs(self.element_spec)
        )

    def take(self, count: int) -> Any:  # noqa: D102
        for x in self.dataset.take(1).map(_get_mapped_inputs):
            return tf.nest.map_structure(lambda t: t[:count], x)
        raise DataError("Expected a tf.data.Dataset with samples. Received: an empty one.")

    def choose_shard(self, samples: int) -> int:  # noqa: D102
        return max(1, samples // max(1, len(tf.nest.flatten(self.take(samples))[0])))

    def count_shards(self, shard: int) -> int | None:  # noqa: D102
        return None if self.batches is None else -(-self.batches // shard)

    def read(  # noqa: D102
        self, shard: int, batch_size: int, is_wanted: Callable[[int], bool]
    ) -> Iterator[SampleBatch]:
        del batch_size
        # In the first reading, at least the first batch is compared with a second reading.
        known = self.fingerprints
        if known is None:
            known = hash_rows(self.take(_ALL)).numpy()
        seen: list[np.ndarray] = []
        first = 0
        inputs = self.dataset.map(_get_mapped_inputs)
        for number, (x, marks) in enumerate(inputs.map(lambda x: (x, hash_rows(x)))):
            seen.append(marks.numpy())
            if self.fingerprints is not None or number == 0:
                _check_same(known, seen[-1], first)
            if is_wanted(number // shard):
                yield SampleBatch(number // shard, first, x, seen[-1])
            first += len(seen[-1])
        if first < len(known):
            raise _make_error(first)
        self.fingerprints, self.samples, self.batches = np.concatenate(seen), first, len(seen)
        specs = [f"{s.shape[1:]}{s.dtype.name}" for s in tf.nest.flatten(self.specs)]
        digest = hashlib.sha256(f"{_join_names(_get_inputs(self.element_spec))}{specs}".encode())
        digest.update(self.fingerprints.data)
        self.fingerprint = digest.hexdigest()


def hash_rows(x: Any) -> tf.Tensor:
    """Returns a 64-bit hash of each sample's bytes, shape (batch,), int64."""
    hashes = [tf.raw_ops.Fingerprint(data=leaf, method="farmhash64") for leaf in tf.nest.flatten(x)]
    hashed = tf.raw_ops.Fingerprint(data=tf.concat(hashes, axis=1), method="farmhash64")
    return tf.bitcast(hashed, tf.int64)


def to_fit_dtype(array: np.ndarray) -> np.ndarray:
    """Returns samples in the dtype that `fit` passes on: float64 becomes float32."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _to_arrays(values: Any) -> Any:
    if isinstance(values, list) and values and hasattr(values[0], "shape"):
        values = tuple(values)  # tf.data would turn a list into one tensor
    if isinstance(values, dict | tuple):
        return tf.nest.map_structure(np.asarray, values)
    return np.asarray(values)


def _join_names(x: Any) -> str:
    return ",".join(map(str, x)) if isinstance(x, dict) else ""


def _get_inputs(element: Any) -> Any:
    return element[0] if isinstance(element, tuple) else element


def _get_mapped_inputs(*element: Any) -> Any:
    """Returns the same as `_get_inputs`, as `map` passes a tuple on: element by element."""
    return element[0]


def _check_same(known: np.ndarray, marks: np.ndarray, first: int) -> None:
    expected = known[first : first + len(marks)]
    if len(expected) < len(marks):
        raise _make_error(first + len(expected))
    if not np.array_equal(expected, marks):
        raise _make_error(first + int(np.argmin(expected == marks)))


def _make_error(sample: int) -> DataError:
    return DataError(
        "Expected a tf.data.Dataset that gives the same samples in the same order at every "
        f"reading. Received: others, from sample {sample} on. Leave out shuffle() and random "
        "augmentation; `batches` shuffles, and augmentation= makes the views."
    )
