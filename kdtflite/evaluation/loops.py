"""What cannot be counted: a loop, whose rounds only the data decide."""

from __future__ import annotations

from kdtflite.errors import UnsupportedModelError

__all__ = ["refuse_loop"]


def refuse_loop(what: str) -> UnsupportedModelError:
    """Returns the error for a model whose rounds cannot be counted."""
    return UnsupportedModelError(
        f"Expected a model without loops to count multiply-accumulates. Received: {what}. "
        "Build recurrent layers with unroll=True."
    )
