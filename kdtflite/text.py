"""Text from files of others, shown and never obeyed."""

from __future__ import annotations

import unicodedata

__all__ = ["escape_controls", "escape_line"]

# Control characters, halves of surrogate pairs, line and paragraph separators, and the invisible
# characters that turn the direction of a line around.
_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# They join letters of Persian and Hindi, and emoji.
_JOINERS = "\u200c\u200d"


def escape_controls(text: str, *, keep: str = "\n\t") -> str:
    r"""Returns text in which a terminal finds nothing to obey.

    A label may hold the escape sequences that clear a screen, rename a window or paste text. They
    are shown as Python writes them.

    Args:
        text: Any text.
        keep: Control characters that stay.

    Example:
        >>> from kdtflite.text import escape_controls
        >>> escape_controls("cat\x1b[2J\u202etac")
        'cat\\x1b[2J\\u202etac'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        if c in keep or c in _JOINERS or unicodedata.category(c) not in _CATEGORIES
        else c.encode("unicode_escape").decode()
        for c in text
    )


def escape_line(text: str) -> str:
    """Returns text on one line in which a terminal finds nothing to obey."""
    return escape_controls(text, keep="")
