"""Checked samples in batches, in the structure that a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.data.representative import DEFAULT_SAMPLES, InputSpec, take_samples
from kdtflite.models.keras_internals import get_input_structure

__all__ = ["ALL_SAMPLES", "batch_inputs"]

_BATCH = 64
ALL_SAMPLES = 2**62
"""A limit that never applies, for samples whose labels are kept beside them."""


def batch_inputs(
    model: keras.Model, data: Any, *, limit: int = DEFAULT_SAMPLES, **options: Any
) -> Iterator[Any]:
    """Yields batches of inputs, shape (up to 64, ...), in the structure that `model` takes.

    Args:
        model: A Functional or Sequential model.
        data: Samples as `kdtflite.data.take_samples` takes them.
        limit: The largest number of samples to use.
        options: Other options of `kdtflite.data.take_samples`.

    Raises:
        DataError: The data do not fit the model.
    """
    structure = get_input_structure(model)
    specs = [
        InputSpec(name, tuple(tensor.shape[1:]), tensor.dtype.name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]
    for batch in take_samples(data, specs, limit=limit, **options).batches(_BATCH):
        yield tf.nest.pack_sequence_as(structure, [batch[name] for name in model.input_names])
