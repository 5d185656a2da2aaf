"""Rich tables as text, for `print(result)` and for logs."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["as_text"]


def as_text(*parts: RenderableType, width: int = 100) -> str:
    """Returns what rich would print, as plain text without colours."""
    from rich.console import Console

    # file= a plain buffer: no colours, and the width does not depend on somebody's terminal.
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
