"""Rich tables as text, for `print(result)` and for logs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["as_text"]


def as_text(table: RenderableType, *, width: int = 100) -> str:
    """Returns what rich would print, as plain text without colours."""
    from rich.console import Console

    # A plain buffer: no colours, and the width does not depend on somebody's terminal. In a
    # notebook rich would show the table by itself, at once.
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, force_jupyter=False)
    console.print(table, highlight=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
