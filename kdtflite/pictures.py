"""Drawings written as pictures, whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kdtflite.errors import choose
from kdtflite.files import refuse_existing, write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FORMATS", "check_picture", "save_picture"]

FORMATS = (".pdf", ".png", ".svg")
_DPI = 150


def check_picture(
    path: str | os.PathLike[str], *, overwrite: bool, option: str = "overwrite=True"
) -> Path:
    """Returns the path of a picture; refuses one that could not be written.

    Args:
        path: A file ending in .pdf, .png or .svg.
        overwrite: Whether it may exist.
        option: What the user may pass to overwrite, for the message.

    Raises:
        ConfigurationError: The path has another ending.
        OutputExistsError: It exists and `overwrite` is False.
    """
    choose(Path(path).suffix.lower(), FORMATS, what="kind of picture")
    return refuse_existing(path, overwrite=overwrite, option=option)


def save_picture(ax: Axes, path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Writes the figure that `ax` is in as a picture and returns its path.

    Raises:
        ConfigurationError: The path has another ending.
        OutputExistsError: It exists and `overwrite` is False.
    """
    from matplotlib.figure import Figure

    path = check_picture(path, overwrite=overwrite)
    figure = ax.figure
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower().removeprefix("."), dpi=_DPI)
    return write_bytes(path, buffer.getvalue(), overwrite=overwrite)
