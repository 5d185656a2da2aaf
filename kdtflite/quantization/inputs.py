"""Checked samples in batches, in the structure that a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.data.representative import DEFAULT_SAMPLES, InputSpec, representative

__all__ = ["ALL_SAMPLES", "input_batches", "input_specs"]

_BATCH = 64
ALL_SAMPLES = 2**62
"""A limit that is none: labels stand beside every sample."""


def input_specs(model: keras.Model) -> list[InputSpec]:
    """Returns what a model takes at each input."""
    return [
        InputSpec(name, tuple(tensor.shape[1:]), tensor.dtype.name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]


def input_batches(
    model: keras.Model, data: Any, *, limit: int = DEFAULT_SAMPLES, size: int = _BATCH
) -> Iterator[Any]:
    """Yields batches of inputs, shape (up to `size`, ...), in the structure that `model` takes.

    Args:
        model: A Functional or Sequential model.
        data: Samples as `kdtflite.data.representative` takes them.
        limit: The most samples to use.
        size: The most samples of a batch.

    Raises:
        DataError: The data do not fit the model.
    """
    structure = getattr(model, "_nested_inputs", model.inputs[0])
    for batch in representative(data, input_specs(model), limit=limit).batches(size):
        yield tf.nest.pack_sequence_as(structure, [batch[name] for name in model.input_names])
