"""Loads any data set: a named one, or the user's own file or folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kdtflite.arguments import check_arguments
from kdtflite.data.files import load_user_dataset
from kdtflite.data.named import NAMES, load_dataset
from kdtflite.data.splits import Dataset
from kdtflite.errors import choose

__all__ = ["is_path", "load"]


@check_arguments
def load(
    name_or_path: str | os.PathLike[str],
    path: str | os.PathLike[str] = "auto",
    *,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """Loads a named data set, or a user's own `.npz` file or folder of images.

    Args:
        name_or_path: "digits", "mnist", "fashion_mnist", "cifar10", or a path. A name takes
            precedence over a file of the same name; write "./digits" for the file.
        path: Where the file of the named data set is; "auto" downloads it once.
        seed: Chooses the samples of each split.
        **options: Passed to `load_dataset` or `load_user_dataset`.

    Raises:
        ConfigurationError: Neither a name nor a path that exists.
        DataError: The file cannot be used.

    Example:
        >>> import kdtflite
        >>> dataset = kdtflite.data.load("digits")
        >>> dataset.sample_shape, dataset.classes
        ((8, 8, 1), 10)
    """
    if is_path(name_or_path):
        return load_user_dataset(name_or_path, seed=seed, **options)
    known = choose(str(name_or_path), NAMES, what="data set, file or folder")
    return load_dataset(known, path, seed=seed, **options)


def is_path(name_or_path: str | os.PathLike[str]) -> bool:
    """Says whether `load` reads this as a path: it looks like one or exists, and is not a name."""
    if not isinstance(name_or_path, str):
        return True
    if name_or_path in NAMES:
        return False
    path = Path(name_or_path)
    return os.path.basename(name_or_path) != name_or_path or path.exists() or bool(path.suffix)
