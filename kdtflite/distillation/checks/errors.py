"""Keras' and TensorFlow's errors of a training, in one sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from kdtflite.distillation.checks.first_batch import explain_label_error
from kdtflite.distillation.teachers.failures import find_python_error
from kdtflite.errors import ConfigurationError, DataError, KdtfliteError

__all__ = ["refuse_endless", "translate_errors"]


def refuse_endless(data: Any, steps: int | None, argument: str) -> None:
    """Raises ConfigurationError for an endless tf.data.Dataset without a number of steps."""
    if not isinstance(data, tf.data.Dataset) or steps is not None:
        return
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ConfigurationError(
            f"Expected {argument}= for a tf.data.Dataset that never ends. Received: none. Pass "
            f"{argument}=, or leave out repeat()."
        )


# The start of Keras' error for data of a kind that it does not know.
_NO_ADAPTER = "Failed to find data adapter"


def _read_type(message: str) -> str:
    found = re.search(r"can handle input: \(?<class '([^']+)'", message)
    return f"a {found[1].rpartition('.')[2]}" if found else "something else"


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raises the error behind TensorFlow's own, which is forty lines of trace.

    That is an error of kdtflite, the exception of a Python teacher, or a DataError for a label
    out of range. Every other error is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, KdtfliteError):
            found = found.__context__
        if found is error:
            raise
        if found is None and isinstance(error, ValueError) and _NO_ADAPTER in str(error):
            found = DataError(
                "Expected arrays, a tf.data.Dataset, a Sequence, a PyDataset or a generator of "
                f"batches (x, y). Received: {_read_type(str(error))}. Pass a generator that "
                "yields its batches as NumPy arrays, with steps_per_epoch= where it is endless."
            )
        if found is None and isinstance(error, tf.errors.OpError):
            problem = explain_label_error(error)
            found = find_python_error(error) or (DataError(problem) if problem else None)
        if found is None:
            raise
        raise found from None
