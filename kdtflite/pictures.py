"""Figures saved as picture files, whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kdtflite.errors import choose
from kdtflite.files import refuse_existing, write_bytes
from kdtflite.text import escape_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FORMATS", "check_picture", "save_picture"]

FORMATS = (".pdf", ".png", ".svg")
_DPI = 150


def check_picture(
    path: str | os.PathLike[str], *, overwrite: bool, option: str = "overwrite=True"
) -> Path:
    """Returns the path of a picture, or raises if it cannot be written.

    Args:
        path: A file that ends in .pdf, .png or .svg.
        overwrite: Replace an existing file.
        option: The option that allows it, for the message.

    Raises:
        ConfigurationError: The path has another ending.
        OutputExistsError: It exists and `overwrite` is False.
    """
    choose(Path(path).suffix.lower(), FORMATS, what="kind of picture")
    return refuse_existing(path, overwrite=overwrite, option=option)


def save_picture(ax: Axes, path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Saves the figure of `ax` as a picture and returns its path.

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
    content = buffer.getvalue()
    if path.suffix.lower() == ".svg":
        # matplotlib writes control characters of names as they are, which XML does not allow.
        content = escape_controls(content.decode()).encode()
    return write_bytes(path, content, overwrite=overwrite)
