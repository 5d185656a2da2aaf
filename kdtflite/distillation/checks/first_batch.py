"""Refuses samples and labels that do not fit, before Keras does so in thirty lines."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.splits import refuse_not_finite
from kdtflite.distillation.losses.hard_labels import HardLabels
from kdtflite.distillation.step import CachedBatch
from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.models.keras_internals import flatten_layers

__all__ = ["check_first_batch", "check_labels", "explain_label_error"]

_SPARSE = "sparse_categorical_crossentropy"
_DENSE = ("categorical_crossentropy", "categorical_focal_crossentropy")


def check_first_batch(
    student: keras.Model,
    x: Any,
    y: Any = None,
    *,
    check_labels: Callable[[Any], None] = lambda labels: None,
    check_samples: bool = True,
) -> Any:
    """Checks that the student takes the samples and that its loss takes the labels.

    Arrays are checked whole, a Sequence and a generator by their first batch. Of a
    tf.data.Dataset only the specification is read: reading a batch would change a shuffled order
    and consume a generator behind it.

    Args:
        student: A tf_keras model.
        x: What `fit` was given as x.
        y: What `fit` was given as y.
        check_labels: Called with the labels (arrays or specifications); raises if the loss cannot
            take them.
        check_samples: False where the student is given something computed from `x`.

    Returns:
        `x`, complete: a batch that was taken from a generator is put back.

    Raises:
        ShapeMismatchError: Samples of a shape that the student cannot take.
        DataError: Labels that are missing or that the loss cannot take, samples that are not
            batched, or samples with NaN or infinity.
    """
    inputs, labels = x, y
    if isinstance(x, tf.data.Dataset):
        inputs, labels = _unpack(x.element_spec)
        if check_samples:
            _check_batched(student, inputs, labels)
    elif isinstance(x, keras.utils.Sequence):
        inputs, labels = _unpack(x[0]) if len(x) else (None, None)
    elif isinstance(x, Iterator):
        first = list(itertools.islice(x, 1))
        x = itertools.chain(first, x)
        inputs, labels = _unpack(first[0]) if first else (None, None)
    if inputs is None or any(_get_shape(part) is None for part in tf.nest.flatten(inputs)):
        return x  # another kind of data, which Keras takes or refuses itself
    if check_samples:
        _check_inputs(student, inputs)
    check_labels(labels)
    return x


def check_labels(
    hard_labels: HardLabels, labels: Any, output_shape: tuple[int | None, ...]
) -> None:
    """Checks that a loss takes these labels; a user's own loss is trusted with any labels.

    Args:
        hard_labels: The loss on the labels.
        labels: Arrays, tensors or specifications.
        output_shape: Shape of the student's output, (None, ..., classes).

    Raises:
        DataError: The loss cannot take them.
    """
    name = hard_labels.function
    shape = _get_shape(labels)
    if not name or shape is None:
        return
    classes, positions = output_shape[-1], tuple(output_shape[1:-1])
    if _is_text(labels):
        raise DataError(
            f"Expected labels as numbers. Received: {_describe_dtype(labels)}. Number the classes, "
            "for example with np.unique(y, return_inverse=True)."
        )
    if name == _SPARSE and not positions and len(shape) == 2 and (shape[1] or 1) > 1:
        raise DataError(
            f"The loss {name} takes class indices. Expected labels of shape (samples,). "
            f"Received: {shape}. Pass y.argmax(axis=1), or use CategoricalCrossentropy."
        )
    if (
        name == _SPARSE
        and positions
        and not any(_fits(shape, (None, *positions, *last)) for last in ((), (1,)))
    ):
        raise DataError(
            f"The loss {name} takes one class index per position. Expected labels of shape "
            f"{('samples', *positions)}. Received: {shape}. Label every position, or end the "
            "student in one output per sample."
        )
    if name in _DENSE and len(shape) == 1:
        raise DataError(
            f"The loss {name} takes one row per sample. Expected labels of shape "
            f"{('samples', classes)}. Received: {shape}. Use SparseCategoricalCrossentropy for "
            "class indices."
        )
    if name == _SPARSE and classes and getattr(labels, "__array__", None) is not None:
        values = np.asarray(labels)
        codes = np.trunc(values.astype(np.float64)) if values.dtype.kind in "biuf" else np.empty(0)
        ignored = hard_labels.arguments.get("ignore_class")
        wrong = codes[~((codes >= 0) & (codes < classes)) & (codes != ignored)]
        if wrong.size:
            raise DataError(_describe_out_of_range(f"{wrong[0]:g}", classes))


_LABEL = re.compile(r"label value of (-?\d+) which is outside the valid range of \[0, (\d+)\)")
# After tf.config.experimental.enable_op_determinism() another operator reads the labels.
_LABEL_IF_DETERMINISTIC = re.compile(
    r"indices\[[\d, ]+\] = (-?\d+) is not in \[0, (\d+)\)\s+"
    r"\[\[\{\{node [^}]*SparseSoftmaxCrossEntropyWithLogits\w*/GatherV2"
)


def explain_label_error(error: Exception) -> str | None:
    """Returns a sentence for TensorFlow's error about a label out of range; else None."""
    found = _LABEL.search(str(error)) or _LABEL_IF_DETERMINISTIC.search(str(error))
    return None if found is None else _describe_out_of_range(found[1], int(found[2]))


def _unpack(batch: Any) -> tuple[Any, Any]:
    inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
    return inputs.inputs if isinstance(inputs, CachedBatch) else inputs, labels


def _check_batched(student: keras.Model, inputs: Any, labels: Any) -> None:
    shape, wanted = _get_shape(inputs), _get_input_shape(student)
    scalar = all(_get_shape(part) == () for part in tf.nest.flatten(labels) if part is not None)
    if shape is not None and wanted is not None and scalar and _fits(shape, wanted[1:]):
        raise DataError(
            f"Expected a tf.data.Dataset of batches, shape {wanted}. Received: single samples of "
            f"shape {shape}. Call .batch(32) on it."
        )


def _check_inputs(student: keras.Model, inputs: Any) -> None:
    shape, wanted = _get_shape(inputs), _get_input_shape(student)
    if shape is None or wanted is None:
        return
    if _is_text(inputs) and student.inputs[0].dtype != tf.string:
        raise DataError(
            f"Expected numbers as samples, {student.inputs[0].dtype.name}. Received: "
            f"{_describe_dtype(inputs)}. Turn the texts into numbers first."
        )
    if _fits(shape, wanted) or _can_run(student, shape):
        _check_finite(student, inputs)
        return
    raise ShapeMismatchError(
        f"The student cannot take these samples. Expected shape {wanted}. Received: {shape}. "
        "Reshape, crop or resize the samples, or build the student for their shape."
    )


def _check_finite(student: keras.Model, inputs: Any) -> None:
    if getattr(getattr(inputs, "dtype", None), "kind", "") != "f" or not np.size(inputs):
        return
    if any(isinstance(layer, keras.layers.Masking) for layer in flatten_layers(student)):
        return  # a masked position may hold anything
    refuse_not_finite(np.asarray(inputs))


def _describe_out_of_range(label: str, classes: int) -> str:
    return (
        f"Labels out of range. Expected 0 to {classes - 1}, since the student has {classes} "
        f"classes. Received: {label}. Number the classes from 0, or build the student with one "
        "output per class."
    )


def _get_input_shape(student: keras.Model) -> tuple[int | None, ...] | None:
    return tuple(student.inputs[0].shape) if len(student.inputs) == 1 else None


def _get_shape(value: Any) -> tuple[int | None, ...] | None:
    """Returns the shape of an array, tensor or specification; None for anything else."""
    try:
        return tuple(value.shape)
    except (AttributeError, TypeError, ValueError):  # a dict; ValueError: an unknown rank
        return None


def _describe_dtype(value: Any) -> str:
    dtype = getattr(value, "dtype", "unknown")
    return "strings" if _is_text(value) else str(dtype)


def _is_text(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype == tf.string or getattr(dtype, "kind", "") in ("S", "U"):
        return True
    first = next(iter(np.ravel(value)[:1]), None) if getattr(dtype, "kind", "") == "O" else None
    return isinstance(first, str | bytes)


def _fits(shape: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        None in (got, want) or got == want for got, want in zip(shape, wanted, strict=True)
    )


def _can_run(student: keras.Model, shape: tuple[int | None, ...]) -> bool:
    """Whether Keras takes this shape although it is not the declared one (no last axis of 1)."""
    spec = tf.TensorSpec((None, *shape[1:]) if shape else (), student.inputs[0].dtype)
    try:
        tf.function(lambda x: student(x, training=False)).get_concrete_function(spec)
    except Exception:  # every layer refuses in its own way
        return False
    return True
