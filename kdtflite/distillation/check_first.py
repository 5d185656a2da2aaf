"""Refuses what the student or its loss cannot take, before Keras does in thirty lines."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.finite import refuse_not_finite
from kdtflite.distillation.losses.hard_labels import HardLabels
from kdtflite.distillation.step import Taught
from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.models.inspect import number_of_classes

__all__ = ["check_first_batch", "label_outside"]

_SPARSE = "sparse_categorical_crossentropy"
_DENSE = ("categorical_crossentropy", "categorical_focal_crossentropy")


def check_first_batch(
    student: keras.Model,
    hard_labels: HardLabels | None,
    x: Any,
    y: Any = None,
    *,
    preprocessed: bool = False,
) -> Any:
    """Checks that the student takes the samples and the loss the labels.

    Arrays are looked at whole, a Sequence and a generator by their first batch. Of a
    tf.data.Dataset only the specification is read: one more pass would change a shuffled order,
    and take from a generator behind it.

    Args:
        student: The student.
        hard_labels: The loss on the labels; one of the user's own is trusted with any labels.
        x: What `fit` was given.
        y: The same.
        preprocessed: The student is given something made of `x`: the samples are not checked.

    Returns:
        `x`, whole: a batch taken from a generator is put back.

    Raises:
        ShapeMismatchError: Samples of a shape that the student cannot take.
        DataError: No labels, labels that the loss cannot take, samples that are not batched, or
            NaN and infinity in them.
    """
    inputs, labels = x, y
    if isinstance(x, tf.data.Dataset):
        inputs, labels = _parts(x.element_spec)
        if not preprocessed:
            _check_batched(student, inputs, labels)
    elif isinstance(x, keras.utils.Sequence):
        inputs, labels = _parts(x[0]) if len(x) else (None, None)
    elif isinstance(x, Iterator):
        taken = list(itertools.islice(x, 1))
        x = itertools.chain(taken, x)
        inputs, labels = _parts(taken[0]) if taken else (None, None)
    if inputs is None or any(_shape(part) is None for part in tf.nest.flatten(inputs)):
        return x  # of another kind, which Keras knows, or refuses
    if not preprocessed:
        _check_inputs(student, inputs)
    if hard_labels is not None and hard_labels.function:
        _check_labels(hard_labels, labels, student)
    return x


def label_outside(error: Exception) -> str | None:
    """Returns in a sentence what TensorFlow says of a label out of range, else None."""
    found = re.search(
        r"label value of (-?\d+) which is outside the valid range of \[0, (\d+)\)", str(error)
    )
    return None if found is None else _out_of_range(found[1], int(found[2]))


def _parts(batch: Any) -> tuple[Any, Any]:
    inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
    return inputs.inputs if isinstance(inputs, Taught) else inputs, labels


def _check_batched(student: keras.Model, inputs: Any, labels: Any) -> None:
    shape, wanted = _shape(inputs), _wanted(student)
    scalar = labels is None or _shape(labels) == ()
    if shape is not None and wanted is not None and scalar and _fits(shape, wanted[1:]):
        raise DataError(
            f"Expected a tf.data.Dataset of batches, samples of shape {wanted}. Received: single "
            f"samples of shape {shape}. Call .batch(32) on it."
        )


def _check_inputs(student: keras.Model, inputs: Any) -> None:
    shape, wanted = _shape(inputs), _wanted(student)
    if shape is None or wanted is None:
        return
    if _is_text(inputs) and student.inputs[0].dtype != tf.string:
        raise DataError(
            f"Expected numbers as samples, {student.inputs[0].dtype.name}. Received: "
            f"{_dtype(inputs)}. Turn the texts into numbers first."
        )
    if _fits(shape, wanted) or _runs(student, shape):
        _check_finite(student, inputs)
        return
    raise ShapeMismatchError(
        f"The student cannot take these samples. Expected shape {wanted}. Received: {shape}. "
        "Reshape, crop or resize the samples, or build the student for their shape."
    )


def _check_finite(student: keras.Model, inputs: Any) -> None:
    if getattr(getattr(inputs, "dtype", None), "kind", "") != "f" or not np.size(inputs):
        return
    if any(isinstance(layer, keras.layers.Masking) for layer in student._flatten_layers()):
        return  # a position that is masked may hold anything
    refuse_not_finite(np.asarray(inputs))


def _check_labels(hard_labels: HardLabels, labels: Any, student: keras.Model) -> None:
    name = hard_labels.function
    classes = number_of_classes(student)
    sequences = len(student.output_shape) > 2
    if labels is None:
        raise DataError(
            f"The loss {name} needs labels. Expected one a sample. Received: none. Pass y, or "
            "batches (x, y); to learn from the teacher alone, pass hard_label_weight=0 to "
            "Distiller() and no loss to compile()."
        )
    shape = _shape(labels)
    if shape is None:
        return
    if _is_text(labels):
        raise DataError(
            f"Expected labels as numbers. Received: {_dtype(labels)}. Number the classes, for "
            "example with np.unique(y, return_inverse=True)."
        )
    if name == _SPARSE and not sequences and len(shape) == 2 and (shape[1] or 1) > 1:
        raise DataError(
            f"The loss {name} takes class indices. Expected labels of shape (samples,). "
            f"Received: {shape}. Pass y.argmax(axis=1), or use CategoricalCrossentropy."
        )
    positions = tuple(student.output_shape[1:-1])
    if (
        name == _SPARSE
        and sequences
        and not any(_fits(shape, (None, *positions, *last)) for last in ((), (1,)))
    ):
        raise DataError(
            f"The loss {name} takes a class index a position. Expected labels of shape "
            f"{('samples', *positions)}. Received: {shape}. Give every position a label, or end "
            "the student in one output a sample."
        )
    if name in _DENSE and len(shape) == 1:
        raise DataError(
            f"The loss {name} takes a row a sample. Expected labels of shape "
            f"{('samples', classes)}. Received: {shape}. Use SparseCategoricalCrossentropy for "
            "class indices."
        )
    if name == _SPARSE and getattr(labels, "__array__", None) is not None:
        values = np.asarray(labels)
        codes = np.trunc(values.astype(np.float64)) if values.dtype.kind in "biuf" else np.empty(0)
        ignored = hard_labels.arguments.get("ignore_class")
        wrong = codes[~((codes >= 0) & (codes < classes)) & (codes != ignored)]
        if wrong.size:
            raise DataError(_out_of_range(f"{wrong[0]:g}", classes))


def _out_of_range(label: str, classes: int) -> str:
    return (
        f"Labels out of range. Expected 0 to {classes - 1}, as the student knows {classes} "
        f"classes. Received: {label}. Number the classes from 0, or build the student with as "
        "many outputs as there are classes."
    )


def _wanted(student: keras.Model) -> tuple[int | None, ...] | None:
    return tuple(student.inputs[0].shape) if len(student.inputs) == 1 else None


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """Returns the shape of an array, tensor or specification, or None where it has none."""
    try:
        return tuple(value.shape)
    except (AttributeError, TypeError, ValueError):  # a dict; ValueError: a rank unknown
        return None


def _dtype(value: Any) -> str:
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


def _runs(student: keras.Model, shape: tuple[int | None, ...]) -> bool:
    """Whether Keras takes a shape other than the declared one: a last axis of 1 may be missing."""
    spec = tf.TensorSpec((None, *shape[1:]) if shape else (), student.inputs[0].dtype)
    try:
        tf.function(lambda x: student(x, training=False)).get_concrete_function(spec)
    except Exception:  # any layer may refuse in its own way
        return False
    return True
