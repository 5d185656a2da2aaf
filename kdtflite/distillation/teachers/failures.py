"""Errors of Python code inside a compiled step, kept so that the user sees them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

__all__ = ["find_python_error", "remember_errors"]

# Several replicas may fail in one step; each keeps its traceback, and with it a batch, alive.
_KEPT = 4
_MARK = "kdtflite teacher failure"

_count = itertools.count(1)
_raised: dict[int, Exception] = {}


def find_python_error(error: BaseException) -> Exception | None:
    """Returns the error that a teacher raised behind an error of TensorFlow, or None.

    TensorFlow turns whatever a Python function raises in a graph into an UnknownError or
    InvalidArgumentError with thirty lines of its own.

    Args:
        error: The error that a compiled step raised.
    """
    found = re.search(rf"{_MARK} (\d+)", str(error))
    return None if found is None else _raised.pop(int(found[1]), None)


def remember_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function for tf.numpy_function so that `find_python_error` finds its errors."""

    def run(*arrays: Any) -> Any:
        try:
            return function(*arrays)
        except Exception as error:
            number = next(_count)
            _raised[number] = error
            for old in sorted(_raised)[:-_KEPT]:
                _raised.pop(old, None)
            # Always this class: TensorFlow takes a StopIteration for the end of the data, and Keras
            # would silently end the epoch.
            raise RuntimeError(f"{type(error).__name__}: {error} [{_MARK} {number}]") from error

    return run
