"""One door to every data set: by name, or by the path of a user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kdtflite.data.files import load_user_dataset
from kdtflite.data.named import NAMES, load_dataset
from kdtflite.data.splits import Dataset
from kdtflite.errors import choose

__all__ = ["load"]


def load(
    name_or_path: str | os.PathLike[str],
    path: str | os.PathLike[str] = "auto",
    *,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """Loads a named data set, or a user's own `.npz` file or folder of images.

    Args:
        name_or_path: "digits", "mnist", "fashion_mnist", "cifar10", or a path. A name wins over
            a file of the same name; write "./digits" for the file.
        path: Where the named set's file lies; "auto" downloads it once.
        seed: Chooses which samples each split gets.
        **options: Passed to `load_dataset` or `load_user_dataset`.

    Raises:
        ConfigurationError: Neither a name nor a path that exists.
        DataError: The file cannot be used.
    """
    if isinstance(name_or_path, str) and name_or_path in NAMES:
        return load_dataset(name_or_path, path, seed=seed, **options)
    looks_like_a_path = not isinstance(name_or_path, str) or os.path.basename(name_or_path) != (
        name_or_path
    )
    if looks_like_a_path or Path(name_or_path).exists() or Path(name_or_path).suffix:
        return load_user_dataset(name_or_path, seed=seed, **options)
    known = choose(str(name_or_path), NAMES, what="data set, file or folder")
    return load_dataset(known, path, seed=seed, **options)
