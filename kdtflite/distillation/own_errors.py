"""Errors raised while a training step is traced, as they were raised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdtflite.errors import KdtfliteError

__all__ = ["own_errors"]


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Raises kdtflite's own errors as they are, which TensorFlow wraps in forty lines of trace."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, KdtfliteError):
            found = found.__context__
        if found is None or found is error:
            raise
        raise found from None
