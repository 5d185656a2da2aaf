"""Parses the JSON of model files, with bounds on its size and depth."""

from __future__ import annotations

import json
import os
from typing import Any

from kdtflite.errors import ModelFileError
from kdtflite.models.trust.sizes import show_bytes

__all__ = ["parse_json"]

_MOST_BYTES = 64 << 20
# Each costs up to 100 bytes of memory. The largest honest ones are tables written as lists.
_MOST_VALUES = 4_000_000
# A model nested in a model adds four levels.
_DEEPEST = 120


def parse_json(text: str | bytes, path: str | os.PathLike[str], part: str) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: The text, in UTF-8 if it is bytes.
        path: The file, for messages.
        part: The part of the file that holds the text, for messages.

    Raises:
        ModelFileError: It is not JSON, or it is larger or deeper than any model needs.
    """
    if len(text) > _MOST_BYTES:
        raise ModelFileError(
            f"{path} is too large to be read: its {part} has {show_bytes(len(text))}. "
            f"Expected at most {show_bytes(_MOST_BYTES)}. Large constants belong into weights."
        )
    try:
        text = text.decode() if isinstance(text, bytes) else text
        # Counted before parsing: every value but the first is behind one of these.
        values = sum(text.count(mark) for mark in "[{,:")
        if values > _MOST_VALUES:
            raise ModelFileError(
                f"{path} is too large to be read: its {part} has {values:,} values. Expected at "
                f"most {_MOST_VALUES:,}. Large constants belong into weights."
            )
        value = json.loads(text)
        depth = _measure_depth(value)
    except RecursionError:
        depth = _DEEPEST + 1
    except ModelFileError:
        raise
    except ValueError as error:
        raise ModelFileError(
            f"{path} is damaged: its {part} is not JSON ({str(error)[:200]}). Save the model again."
        ) from error
    if depth > _DEEPEST:
        raise ModelFileError(
            f"{path} is nested too deeply: its {part} has more than {_DEEPEST} levels of lists and "
            "objects. Save a model with fewer models inside models."
        )
    return value


def _measure_depth(value: Any) -> int:
    """Returns the number of levels of lists and objects, up to one more than is allowed."""
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level and depth <= _DEEPEST:
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        depth += 1
    return depth
