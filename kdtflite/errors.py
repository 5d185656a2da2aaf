"""What kdtflite raises: one base class, and a kind for each thing that can be wrong.

A message says what was expected, what was received and what to do. The command line prints
it without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ConfigurationError",
    "ConversionError",
    "DataError",
    "KdtfliteError",
    "ModelFileError",
    "NotFullyIntegerError",
    "OutputExistsError",
    "ShapeMismatchError",
    "UnsupportedModelError",
    "choose",
    "one_line",
]


class KdtfliteError(Exception):
    """Base of every error that kdtflite raises on purpose."""


class ConfigurationError(KdtfliteError, ValueError):
    """A parameter, a recipe key or a combination of them cannot be used."""


class DataError(KdtfliteError, ValueError):
    """Data of the wrong shape, dtype, range or number, or a file that holds none."""


class ShapeMismatchError(KdtfliteError, ValueError):
    """Two models, or a model and its data, do not fit each other."""


class ModelFileError(KdtfliteError, ValueError):
    """A model file is missing, damaged, of another format, or not to be trusted."""


class UnsupportedModelError(KdtfliteError, TypeError):
    """A model is sound, but of a kind that this step cannot take."""


class ConversionError(KdtfliteError, RuntimeError):
    """The TensorFlow Lite converter failed or died."""


class NotFullyIntegerError(ConversionError):
    """A converted file holds a float tensor, a Flex or custom op, or float inputs or outputs."""


class OutputExistsError(KdtfliteError, FileExistsError):
    """A file or folder is in the way and nothing said to overwrite it."""


def choose(name: str, valid: Iterable[str], *, what: str) -> str:
    """Returns `name` if it is among `valid`, else raises with the valid ones and the nearest.

    Args:
        name: What the user wrote.
        valid: The names there are.
        what: What they name, for the message ("recipe", "target").

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


def one_line(error: BaseException) -> str:
    """Returns an error's message on one line, without the full stop at its end."""
    return " ".join(str(error).split()).rstrip(".")
