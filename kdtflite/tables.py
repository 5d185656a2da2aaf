"""Rich tables as text, for `print(result)` and for logs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from kdtflite.text import escape_controls

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["as_text"]


def as_text(table: RenderableType, *, width: int = 100) -> str:
    """Returns what rich would print, as plain text without colors or control characters."""
    from rich.console import Console

    # A plain buffer has no colors, and its width does not depend on the terminal. Without
    # force_jupyter=False, rich would display the table in a notebook at once.
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_jupyter=False)
    console.print(table, highlight=False)
    lines = (line.rstrip() for line in buffer.getvalue().split("\n"))
    return escape_controls("\n".join(lines).rstrip("\n"))
