"""The errors of kdtflite: one base class, and one subclass for each kind of fault.

A message says what was expected, what was received and what to do. The command line prints
it without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from kdtflite.text import escape_controls

__all__ = [
    "PARSER_FAULTS",
    "ConfigurationError",
    "ConversionError",
    "DataError",
    "KdtfliteError",
    "ModelFileError",
    "NotFullyIntegerError",
    "OutputExistsError",
    "ShapeMismatchError",
    "TrainingError",
    "UnsupportedModelError",
    "choose",
    "to_line",
]

PARSER_FAULTS = (
    ValueError,  # and UnicodeDecodeError
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
)
"""What a library that parses a file raises where the file is wrong, beside its own errors."""


class KdtfliteError(Exception):
    """Base of every error that kdtflite raises on purpose."""

    def __str__(self) -> str:
        # Names of layers, tensors and labels come from files: a terminal must not obey them.
        return escape_controls(super().__str__())


class ConfigurationError(KdtfliteError, ValueError):
    """A parameter, a recipe key or a combination of them cannot be used."""


class DataError(KdtfliteError, ValueError):
    """Data of the wrong shape, dtype, range or number, or a file without data."""


class ShapeMismatchError(KdtfliteError, ValueError):
    """Two models, or a model and its data, do not fit each other."""


class ModelFileError(KdtfliteError, ValueError):
    """A model file is missing, damaged, of another format, or would run code."""


class UnsupportedModelError(KdtfliteError, TypeError):
    """A model is sound, but this step does not support its kind."""


class TrainingError(KdtfliteError, RuntimeError):
    """A training cannot go on: its loss, its weights or its gradients are no longer finite."""


class ConversionError(KdtfliteError, RuntimeError):
    """The TensorFlow Lite converter failed or died."""


class NotFullyIntegerError(ConversionError):
    """A converted file holds a float tensor, a Flex or custom op, or float inputs or outputs."""


class OutputExistsError(KdtfliteError, FileExistsError):
    """A file or folder exists already and may not be overwritten."""


def choose(name: str, valid: Iterable[str], *, what: str) -> str:
    """Returns `name` if it is among `valid`; else the error lists them and suggests the nearest.

    Args:
        name: The name that the user wrote.
        valid: All valid names.
        what: The kind of thing they name, for the message ("recipe", "target").

    Raises:
        ConfigurationError: `name` is not among `valid`.
    """
    names = sorted(valid)
    if name in names:
        return name
    near = get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(
        f"There is no {what} {name!r}.{hint} Expected one of: {', '.join(names)}."
    )


def to_line(error: BaseException) -> str:
    """Returns an error's message on one line, without its final period."""
    return " ".join(str(error).split()).rstrip(".")
