"""Converts data sets of Keras 3 to tf_keras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras3.conversion import is_from_keras3

__all__ = ["to_tf_keras_data"]


def to_tf_keras_data(x: Any) -> Any:
    """Returns a PyDataset of Keras 3 as tf_keras' `fit` takes it; everything else unchanged.

    Its batches are read one after the other in this process: `workers` and `use_multiprocessing`
    are arguments of tf_keras' `fit`.

    Args:
        x: What `fit`, `evaluate` or `predict` were given as x, or as validation_data.

    Returns:
        A tf_keras Sequence; a generator where the PyDataset is endless.
    """
    if not is_from_keras3(x) or not any(base.__name__ == "PyDataset" for base in type(x).__mro__):
        return x
    return _generate(x) if x.num_batches is None else _AsSequence(x)


class _AsSequence(keras.utils.Sequence):
    """A PyDataset of known length.

    Args:
        data: The PyDataset.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return int(self.data.num_batches)

    def __getitem__(self, index: int) -> Any:
        return _to_arrays(self.data[index])

    def on_epoch_end(self) -> None:
        """Tells the PyDataset that an epoch ended, and that the next one begins."""
        self.data.on_epoch_end()
        if hasattr(self.data, "on_epoch_begin"):
            self.data.on_epoch_begin()


def _generate(data: Any) -> Iterator[Any]:
    index = 0
    while True:
        yield _to_arrays(data[index])
        index += 1


def _to_arrays(batch: Any) -> Any:
    """Returns a batch whose leaves are NumPy arrays or tensors of TensorFlow."""
    batch = tuple(batch) if isinstance(batch, list) else batch
    return tf.nest.map_structure(
        lambda part: part if part is None or tf.is_tensor(part) else np.asarray(part), batch
    )
