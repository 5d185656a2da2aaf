"""A user's own data: an `.npz` file of arrays, or a folder of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from kdtflite.data.images import class_folders, load_image_folder, shared_image_size
from kdtflite.data.npz import read_npz
from kdtflite.data.splits import Dataset, Split, as_labels, stratified_split
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.progress import say

__all__ = ["Arrays", "load_arrays", "load_user_dataset"]

Part = Literal["train", "validation", "test"]

# What people call the three splits, in arrays (x_val) and in folders (val/).
_ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_CLASS_NAMES = "class_names"


class Arrays(NamedTuple):
    """What an `.npz` file holds.

    Args:
        x: Samples, shape (samples, ...), in the file's dtype; for a model of several inputs one
            such array an input, by name.
        y: Class of each sample, shape (samples,), int64; None where the file has no labels.
        names: Names of the inputs; ("x",) for a single one.
    """

    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    names: tuple[str, ...]


def load_arrays(
    path: str | os.PathLike[str], *, part: Part = "train", quiet: bool = False
) -> Arrays:
    """Reads samples, and labels where there are any, from an `.npz` file.

    Three layouts are understood: `x` and perhaps `y`; `x_train`, `y_train`, `x_test`, ...; and,
    for representative data of a model with several inputs, one array an input, named like it.

    Args:
        path: The file.
        part: Which split of an `x_train`, ... file is wanted.
        quiet: Convert one-hot labels without saying so.

    Returns:
        The samples as they are in the file (not scaled), labels and input names.

    Raises:
        DataError: The file cannot be read, holds no samples, NaN, labels that are no classes, or
            arrays of different lengths.
    """
    arrays = read_npz(path)
    if _has_splits(arrays):
        x_key, y_key = _key(arrays, "x", part), _key(arrays, "y", part)
        if x_key is None:
            raise DataError(
                f"Expected x_{part} in {path}. Received: {', '.join(arrays)}. "
                "Choose another part, or add the array."
            )
    elif "x" in arrays:
        x_key, y_key = "x", "y" if "y" in arrays else None
    else:
        return _by_input_name(path, arrays)
    x = _checked_samples(path, x_key, arrays[x_key])
    if y_key is None:
        return Arrays(x, None, ("x",))
    try:
        y = as_labels(arrays[y_key], quiet=quiet)
    except DataError as error:
        raise DataError(f"{y_key!r} in {path}: {error}") from error
    _demand_length(path, x_key, len(x), y_key, len(y))
    return Arrays(x, y, ("x",))


def load_user_dataset(
    path: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int = 3,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    name: str | None = None,
    quiet: bool = False,
) -> Dataset:
    """Loads a user's `.npz` file or image folder as a data set of three splits.

    Splits that the file (`x_train`, `x_val`, `x_test`, ...) or the folder (train/, val/, test/)
    already has are kept; a missing one is held out of train, class by class. Images as bytes
    (uint8) are scaled to 0..1; floating samples are taken as they are.

    Args:
        path: An `.npz` file, or a folder with one sub-folder of images a class.
        image_size: Height and width to resize images of a folder to, or one number for both; by
            default the size that all of them have.
        channels: 1 (grey) or 3 (RGB), for a folder of images.
        seed: Chooses which samples are held out.
        validation_fraction: Share of all samples for validation where there is no such split.
        test_fraction: Share of all samples for test where there is no such split.
        name: Name for reports; by default the file's own.
        quiet: Show no progress.

    Raises:
        ConfigurationError: No `image_size` for images of several sizes, or fractions that leave a
            split empty.
        DataError: The data cannot be used; the message names file, array or image.
    """
    path = Path(path)
    for option, value in (
        ("validation_fraction", validation_fraction),
        ("test_fraction", test_fraction),
    ):
        if not 0 < value < 1:
            raise ConfigurationError(f"Expected `{option}` between 0 and 1. Received: {value}.")
    names: tuple[str, ...] | None
    if path.is_dir():
        size = shared_image_size(path) if image_size is None else image_size
        found, names = _folder_parts(path, size, channels, quiet=quiet)
        input_range = (0.0, 1.0)
    else:
        found, names, input_range = _file_parts(path, quiet=quiet)
    present = ", ".join(found)
    parts = _complete(found, validation_fraction, test_fraction, seed)
    if names is None:
        names = tuple(str(n) for n in range(max(int(y.max()) for _, y in parts.values()) + 1))
    return Dataset(
        name=name or path.stem,
        train=Split(*parts["train"]),
        validation=Split(*parts["validation"]),
        test=Split(*parts["test"]),
        class_names=names,
        input_range=input_range,
        description=f"The user's own data; splits found: {present}.",
    )


_Parts = dict[str, tuple[np.ndarray, np.ndarray]]


def _has_splits(arrays: Mapping[str, np.ndarray]) -> bool:
    return _key(arrays, "x", "train") is not None


def _key(arrays: Mapping[str, np.ndarray], letter: str, part: str) -> str | None:
    return next((k for a in _ALIASES[part] if (k := f"{letter}_{a}") in arrays), None)


def _by_input_name(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> Arrays:
    inputs = {
        key: _checked_samples(path, key, value)
        for key, value in arrays.items()
        if key not in ("y", _CLASS_NAMES)
    }
    if not inputs:
        raise DataError(
            f"Expected samples in {path}: an array x, x_train, or one named like each input of "
            f"the model. Received: {', '.join(arrays)}."
        )
    first, *others = inputs
    for other in others:
        _demand_length(path, first, len(inputs[first]), other, len(inputs[other]))
    y = as_labels(arrays["y"]) if "y" in arrays else None
    if y is not None:
        _demand_length(path, first, len(inputs[first]), "y", len(y))
    return Arrays(inputs, y, tuple(inputs))


def _checked_samples(path: str | os.PathLike[str], key: str, x: np.ndarray) -> np.ndarray:
    if not np.issubdtype(x.dtype, np.number) and x.dtype != np.bool_:
        raise DataError(
            f"Expected numbers in {key!r} of {path}. Received: dtype {x.dtype}. "
            "Encode text as token ids first."
        )
    if x.ndim == 0 or x.size == 0:
        raise DataError(
            f"Expected at least one sample in {key!r} of {path}. Received: shape {x.shape}."
        )
    if np.issubdtype(x.dtype, np.floating) and not (np.isfinite(x.min()) and np.isfinite(x.max())):
        bad = int((~np.isfinite(x)).reshape(len(x), -1).any(axis=1).argmax())
        raise DataError(
            f"Expected finite numbers in {key!r} of {path}. Received: NaN or infinity, first in "
            f"sample {bad}. Drop or repair it."
        )
    return x


def _demand_length(
    path: str | os.PathLike[str], first: str, length: int, other: str, other_length: int
) -> None:
    if length != other_length:
        raise DataError(
            f"Expected as many rows in {other!r} as in {first!r} of {path}. Received: "
            f"{other_length} and {length}."
        )


def _file_parts(
    path: Path, *, quiet: bool
) -> tuple[_Parts, tuple[str, ...] | None, tuple[float, float]]:
    arrays = read_npz(path)
    wanted: tuple[Part, ...] = ("train", "validation", "test")
    if _has_splits(arrays):
        wanted = tuple(part for part in wanted if _key(arrays, "x", part) is not None)
    else:
        wanted = ("train",)
    parts: _Parts = {}
    for part in wanted:
        x, y, _ = load_arrays(path, part=part, quiet=quiet)
        if isinstance(x, dict) or y is None:
            raise DataError(
                f"Expected samples and labels (x and y, or x_train and y_train, ...) in {path}. "
                f"Received: {', '.join(arrays)}. Without labels it can serve as representative "
                "data only."
            )
        parts[part] = (x, y)
    names = tuple(map(str, arrays[_CLASS_NAMES])) if _CLASS_NAMES in arrays else None
    if all(x.dtype == np.uint8 for x, _ in parts.values()):
        scaled = {part: (_as_images(x), y) for part, (x, y) in parts.items()}
        if not quiet:
            say("Samples: bytes scaled from 0..255 to 0..1.")
        return scaled, names, (0.0, 1.0)
    low = min(float(x.min()) for x, _ in parts.values())
    high = max(float(x.max()) for x, _ in parts.values())
    # A constant array has no range of its own; any that holds it will do.
    return parts, names, (low, high if high > low else low + 1.0)


def _as_images(x: np.ndarray) -> np.ndarray:
    # Bytes of rank 3 are grey images without their channel axis, as in Keras' MNIST.
    images = x[..., np.newaxis] if x.ndim == 3 else x
    return images.astype(np.float32) / np.float32(255.0)


def _folder_parts(
    path: Path, image_size: int | tuple[int, int], channels: int, *, quiet: bool
) -> tuple[_Parts, tuple[str, ...]]:
    children = {child.name.lower(): child for child in class_folders(path)}
    folders = {
        part: children[alias]
        for part, aliases in _ALIASES.items()
        for alias in aliases
        if alias in children
    }
    if "train" not in folders:
        # "test" alone is a class like any other; without train/ there are no splits.
        folders = {"train": path}
    parts: _Parts = {}
    names: tuple[str, ...] | None = None
    for part, folder in folders.items():
        x, y, names = load_image_folder(
            folder, image_size, channels, class_names=names, quiet=quiet
        )
        parts[part] = (x, y)
    assert names is not None
    return parts, names


def _complete(found: _Parts, validation: float, test: float, seed: int) -> _Parts:
    """Holds the missing splits out of train: test first, so that validation cannot move it."""
    parts = dict(found)
    for part, fraction in (("test", test), ("validation", validation)):
        if part in parts:
            continue
        total = sum(len(y) for _, y in found.values())
        x, y = parts["train"]
        keep, out = stratified_split(y, round(fraction * total), seed=seed)
        parts["train"], parts[part] = (x[keep], y[keep]), (x[out], y[out])
    return parts
