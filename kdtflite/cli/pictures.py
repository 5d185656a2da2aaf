"""Pictures that a command writes when asked to."""

from __future__ import annotations

from pathlib import Path

from kdtflite.errors import choose
from kdtflite.files import refuse_existing

__all__ = ["FORMATS", "check_picture"]

FORMATS = (".pdf", ".png", ".svg")


def check_picture(path: Path | None, *, force: bool) -> None:
    """Refuses a picture that cannot be written, before the work that it would show.

    Raises:
        ConfigurationError: The path has another ending than `FORMATS`.
        OutputExistsError: It exists and `force` is False.
    """
    if path is not None:
        choose(path.suffix.lower(), FORMATS, what="kind of picture")
        refuse_existing(path, overwrite=force, option="--force")
