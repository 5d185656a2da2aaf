"""Errors of Python code that runs inside a compiled step, kept for the user."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

__all__ = ["python_error", "remembering"]

# Several replicas may fail in one step; each keeps its traceback, and with it a batch, alive.
_KEPT = 4
_MARK = "kdtflite teacher failure"

_count = itertools.count(1)
_raised: dict[int, Exception] = {}


def python_error(error: BaseException) -> Exception | None:
    """Returns the Python error behind an error of TensorFlow, if a teacher raised it, else None.

    TensorFlow turns whatever a Python function raises in a graph into an UnknownError or
    InvalidArgumentError that ends in thirty lines of its own.

    Args:
        error: What a compiled step raised.
    """
    found = re.search(rf"{_MARK} (\d+)", str(error))
    return None if found is None else _raised.pop(int(found[1]), None)


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` for use in tf.numpy_function, so that `python_error` knows its errors."""

    def run(*arrays: Any) -> Any:
        try:
            return function(*arrays)
        except Exception as error:
            number = next(_count)
            _raised[number] = error
            for old in sorted(_raised)[:-_KEPT]:
                _raised.pop(old, None)
            # Always this class: of a StopIteration TensorFlow makes the end of the data, and
            # Keras would end the epoch without a word.
            raise RuntimeError(f"{type(error).__name__}: {error} [{_MARK} {number}]") from error

    return run
