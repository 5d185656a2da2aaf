"""A user's own data: an `.npz` file of arrays, or a folder of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.data.images import (
    find_image_size,
    list_class_folders,
    load_image_folder,
    load_images,
)
from kdtflite.data.npz import read_npz
from kdtflite.data.splits import Dataset, Split, as_labels, stratified_split
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.progress import say

__all__ = ["Arrays", "find_pixel_range", "load_arrays", "load_user_dataset", "read_class_names"]

Part = Literal["train", "validation", "test"]

# What people call the three splits, in arrays (x_val) and in folders (val/).
_ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_UNLABELED = ("unlabeled", "unlabelled")
_CLASS_NAMES = "class_names"
# More classes than this, and than samples, are a label that is no class number.
_FEW_CLASSES = 1000
_BYTE, _WORD = 255, 65535


class Arrays(NamedTuple):
    """The samples and labels of an `.npz` file.

    Args:
        x: Samples, shape (samples, ...), in the file's dtype; for a model with several inputs a
            dict with one such array per input.
        y: Class of each sample, shape (samples,), int64; None where the file has no labels.
        names: Names of the inputs; ("x",) for a single input.
    """

    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    names: tuple[str, ...]


@check_arguments
def load_arrays(
    path: str | os.PathLike[str],
    *,
    part: Part = "train",
    quiet: bool = False,
    read_labels: Callable[[Any], np.ndarray] | None = None,
) -> Arrays:
    """Reads samples, and labels where there are any, from an `.npz` file.

    There are three layouts: `x` and perhaps `y`; `x_train`, `y_train`, `x_test`, `y_test`, ..., of
    which any may be missing; and, for representative data of a model with several inputs, one array
    per input, named like the input.

    Args:
        path: The file.
        part: The split to read from a file of `x_train`, ...
        quiet: Do not report that one-hot labels are converted.
        read_labels: Returns the labels in the form of a task; by default as class indices.

    Returns:
        The samples as they are in the file (not scaled), the labels and the input names.

    Raises:
        DataError: The file cannot be read, or holds no samples, NaN, labels that are not class
            indices, or arrays of different lengths.
    """
    arrays = read_npz(path)
    if _has_splits(arrays):
        x_key, y_key = _find_key(arrays, "x", part), _find_key(arrays, "y", part)
        if x_key is None and part == "train" and "x" in arrays:
            x_key, y_key = "x", "y" if "y" in arrays else None
        if x_key is None:
            raise DataError(
                f"Expected x_{part} in {path}. Received: {', '.join(arrays)}. "
                "Choose another part, or add the array."
            )
        if x_key != "x" and "x" in arrays and part == "train":
            raise DataError(
                f"Expected either x or {x_key} in {path}. Received: both. Remove one of them."
            )
    elif "x" in arrays:
        x_key, y_key = "x", "y" if "y" in arrays else None
    else:
        return _take_by_input_name(path, arrays)
    x = _check_samples(path, x_key, arrays[x_key])
    if y_key is None:
        return Arrays(x, None, ("x",))
    try:
        given = arrays[y_key]
        y = as_labels(given, quiet=quiet) if read_labels is None else read_labels(given)
    except DataError as error:
        raise DataError(f"{y_key!r} in {path}: {error}") from error
    _check_lengths(path, x_key, len(x), y_key, len(y))
    return Arrays(x, y, ("x",))


@check_arguments
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

    Splits of the file (`x_train`, `x_val`, `x_test`, ...) or of the folder (train/, val/, test/)
    are kept. A missing one is held out of the training samples, class by class. Bytes (uint8) are
    scaled to 0..1; floating-point samples stay as they are. Training samples without a label may
    stand in `x_unlabeled`, or in a folder unlabeled/ beside the classes or beside train/.

    Args:
        path: An `.npz` file, or a folder with one subfolder of images per class.
        image_size: Height and width to resize the images of a folder to, or one number for both;
            by default the size that all of them have.
        channels: 1 (gray) or 3 (RGB), for a folder of images.
        seed: Chooses the samples to hold out.
        validation_fraction: Share of all samples for validation, if there is no such split.
        test_fraction: Share of all samples for the test, if there is no such split.
        name: Name for reports; by default that of the file.
        quiet: Show no progress.

    Raises:
        ConfigurationError: The images have several sizes and `image_size` is missing, or the
            fractions leave a split empty.
        DataError: The data cannot be used; the message names the file, array or image.
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
        size = find_image_size(path) if image_size is None else image_size
        found, names = _read_folder(path, size, channels, quiet=quiet)
        input_range = (0.0, 1.0)
    else:
        found, names, input_range = _read_file(path, quiet=quiet)
    present = ", ".join(found)
    unlabeled = found.pop(_UNLABELED[0], None)
    parts = _hold_out_missing(found, validation_fraction, test_fraction, seed)
    if names is None:
        names = _number_classes(path, parts)
    return Dataset(
        name=name or path.stem,
        train=Split(*parts["train"]),
        validation=Split(*parts["validation"]),
        test=Split(*parts["test"]),
        class_names=names,
        input_range=input_range,
        description=f"The user's own data; splits found: {present}.",
        unlabeled=None if unlabeled is None else unlabeled[0],
    )


def _number_classes(path: Path, parts: _Parts) -> tuple[str, ...]:
    """Returns the numbers of the classes as their names."""
    classes = max(int(y.max(initial=0)) for _, y in parts.values()) + 1
    samples = sum(len(y) for _, y in parts.values())
    if classes > max(samples, _FEW_CLASSES):
        raise DataError(
            f"Expected labels from 0 up, without gaps, in {path}. Received: the label "
            f"{classes - 1}, so {classes:,} classes for {samples:,} samples. Number the classes "
            f"0, 1, 2, ..., or name all of them in an array {_CLASS_NAMES!r}."
        )
    return tuple(map(str, range(classes)))


_Parts = dict[str, tuple[np.ndarray, np.ndarray]]
_NO_LABELS = np.empty(0, np.int64)


def _has_splits(arrays: Mapping[str, np.ndarray]) -> bool:
    return any(_find_key(arrays, "x", part) is not None for part in _ALIASES)


def _find_key(arrays: Mapping[str, np.ndarray], letter: str, part: str) -> str | None:
    return next((k for a in _ALIASES[part] if (k := f"{letter}_{a}") in arrays), None)


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads the names of the classes of an `.npz` file, its array `class_names`.

    Args:
        path: The file.

    Returns:
        The name of each class; empty if the file has none.

    Raises:
        DataError: The file cannot be read, or `class_names` is not a list of texts or numbers.
    """
    return _take_class_names(path, read_npz(path)) or ()


def _take_class_names(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]
) -> tuple[str, ...] | None:
    names = arrays.get(_CLASS_NAMES)
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise DataError(
            f"Expected {_CLASS_NAMES!r} in {path} as a list of texts, one per class. Received: "
            f"shape {names.shape}, dtype {names.dtype}."
        )
    if names.dtype.kind == "S":
        return tuple(name.decode("utf-8", "replace") for name in names.tolist())
    return tuple(map(str, names.tolist()))


def _take_by_input_name(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> Arrays:
    inputs = {
        key: _check_samples(path, key, value)
        for key, value in arrays.items()
        if key not in ("y", _CLASS_NAMES)
    }
    if not inputs:
        raise DataError(
            f"Expected samples in {path}: an array x, x_train, or one array named like each "
            f"input of the model. Received: {', '.join(arrays)}."
        )
    first, *others = inputs
    for other in others:
        _check_lengths(path, first, len(inputs[first]), other, len(inputs[other]))
    try:
        y = as_labels(arrays["y"]) if "y" in arrays else None
    except DataError as error:
        raise DataError(f"'y' in {path}: {error}") from error
    if y is not None:
        _check_lengths(path, first, len(inputs[first]), "y", len(y))
    return Arrays(inputs, y, tuple(inputs))


def _check_samples(path: str | os.PathLike[str], key: str, x: np.ndarray) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise DataError(
            f"Expected numbers in {key!r} of {path}. Received: dtype {x.dtype}. "
            "Encode text as token ids first."
        )
    if x.ndim == 0 or x.size == 0:
        raise DataError(
            f"Expected at least one sample in {key!r} of {path}. Received: shape {x.shape}."
        )
    most = float(np.finfo(np.float32).max)  # models compute in float32
    if x.dtype.kind == "f" and not (x.min() >= -most and x.max() <= most):
        bad = int((~(np.abs(x) <= most)).reshape(len(x), -1).any(axis=1).argmax())
        raise DataError(
            f"Expected finite numbers in {key!r} of {path}. Received: NaN, infinity or a number "
            f"beyond float32, first in sample {bad}. Drop or repair it."
        )
    return x


def _check_lengths(
    path: str | os.PathLike[str], first: str, length: int, other: str, other_length: int
) -> None:
    if length != other_length:
        raise DataError(
            f"Expected as many rows in {other!r} as in {first!r} of {path}. Received: "
            f"{other_length} and {length}."
        )


def _read_file(
    path: Path, *, quiet: bool
) -> tuple[_Parts, tuple[str, ...] | None, tuple[float, float]]:
    arrays = read_npz(path)
    wanted: tuple[Part, ...] = ("train", "validation", "test")
    if _has_splits(arrays):
        found = (part for part in wanted if _find_key(arrays, "x", part) is not None)
        wanted = tuple(dict.fromkeys(("train", *found)))  # without train nothing can be trained
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
    for key in (f"x_{word}" for word in _UNLABELED):
        if key in arrays:
            parts[_UNLABELED[0]] = (_check_samples(path, key, arrays[key]), _NO_LABELS)
    names = _take_class_names(path, arrays)
    if top := find_pixel_range([x for x, _ in parts.values()]):
        scaled = {part: (_scale_pixels(x, top), y) for part, (x, y) in parts.items()}
        if not quiet:
            what = "bytes" if top == _BYTE else "16-bit pixels"
            say(f"Samples: {what} scaled from 0..{top} to 0..1.")
        return scaled, names, (0.0, 1.0)
    low = min(float(x.min()) for x, _ in parts.values())
    high = max(float(x.max()) for x, _ in parts.values())
    # The range of a constant array has no width; any range that contains it will do.
    return parts, names, (low, high if high > low else low + 1.0)


def find_pixel_range(arrays: Sequence[np.ndarray]) -> int | None:
    """Returns the largest value of pixels, 255 or 65,535; None for samples that are no pixels.

    Bytes are pixels of any shape, 16-bit numbers where a sample has two axes or more: a list of
    such numbers may be token ids.
    """
    if all(x.dtype == np.uint8 for x in arrays):
        return _BYTE
    return _WORD if all(x.dtype == np.uint16 and x.ndim >= 3 for x in arrays) else None


def _scale_pixels(x: np.ndarray, top: int) -> np.ndarray:
    # Pixels of rank 3 are gray images without a channel axis, as in Keras' MNIST.
    images = x[..., np.newaxis] if x.ndim == 3 else x
    return images.astype(np.float32) / np.float32(top)


def _read_folder(
    path: Path, image_size: int | tuple[int, int], channels: int, *, quiet: bool
) -> tuple[_Parts, tuple[str, ...]]:
    children = {child.name.lower(): child for child in list_class_folders(path)}
    folders = {
        part: children[alias]
        for part, aliases in _ALIASES.items()
        for alias in aliases
        if alias in children
    }
    if "train" not in folders:
        # "test" alone is a class like any other; without train/ there are no splits.
        folders = {"train": path}
    apart = [children[word] for word in _UNLABELED if word in children]
    parts: _Parts = {}
    names: tuple[str, ...] | None = None
    for part, folder in folders.items():
        no_class = [other.name for other in apart if folder == path]
        x, y, names = load_image_folder(
            folder, image_size, channels, class_names=names, leave_out=no_class, quiet=quiet
        )
        parts[part] = (x, y)
    for folder in apart:
        unlabeled = load_images(folder, image_size, channels, quiet=quiet)
        parts[_UNLABELED[0]] = (unlabeled, _NO_LABELS)
    assert names is not None
    return parts, names


def _hold_out_missing(found: _Parts, validation: float, test: float, seed: int) -> _Parts:
    """Holds missing splits out of train; test first, so that validation does not change it."""
    parts = dict(found)
    for part, fraction in (("test", test), ("validation", validation)):
        if part in parts:
            continue
        total = sum(len(y) for _, y in found.values())
        x, y = parts["train"]
        keep, out = stratified_split(y, round(fraction * total), seed=seed)
        parts["train"], parts[part] = (x[keep], y[keep]), (x[out], y[out])
    return parts
