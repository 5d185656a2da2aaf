"""Samples as a command takes them: an .npz file, an image folder, a named data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kdtflite.data.files import load_arrays
from kdtflite.data.images import load_image_folder
from kdtflite.data.named import NAMES
from kdtflite.data.npz import read_npz
from kdtflite.data.sources import load
from kdtflite.errors import ConfigurationError, DataError, choose
from kdtflite.progress import say

if TYPE_CHECKING:
    from kdtflite.litemodel import LiteModel

__all__ = ["Expected", "Samples", "expected_by", "read_samples"]

Part = Literal["train", "test"]
_SPLITS: dict[Part, tuple[str, ...]] = {"train": ("train", "training"), "test": ("test", "testing")}

# As for representative data: how much wider than the model's range samples may be, and how much
# narrower, before they must be of another scaling.
_WIDER = 4.0
_NARROWER = 32.0


@dataclass(frozen=True)
class Expected:
    """What a model takes at an input, as far as it is known.

    Attributes:
        shape: Shape of one sample; None where any size is taken.
        dtype: "float32", "int8", ...
        range: Least and greatest real value that an integer input can hold.
        scales: Name of the model's own first layer if that scales bytes, which the model then
            takes as they are.
    """

    shape: tuple[int | None, ...]
    dtype: str
    range: tuple[float, float] | None = None
    scales: str | None = None


class Samples(NamedTuple):
    """Samples in the shape and scaling of a model's inputs.

    Attributes:
        x: Shape (samples, ...), or a dict of such arrays by input name.
        y: Class of each sample, or None where the source has no labels.
        class_names: Name of each class, where the source has them.
    """

    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    class_names: tuple[str, ...]


def expected_by(lite: LiteModel) -> dict[str, Expected]:
    """Returns what a .tflite file takes, by input name."""
    expected = {}
    for spec in lite.inputs:
        shape = tuple(None if size < 0 else size for size in spec.shape_signature[1:])
        expected[spec.name] = Expected(shape, spec.dtype, spec.range)
    return expected


def read_samples(
    source: str,
    expected: Callable[[], Mapping[str, Expected]],
    *,
    part: Part,
    data_path: str = "auto",
    input_range: tuple[float, float] | None = None,
) -> Samples:
    """Reads samples, and labels where there are any, as a model takes them.

    Bytes, images and named data sets are brought to `input_range` (by default 0..1, and 0..255
    for a model that scales them itself); floating samples of a file are taken as they are, and so
    are integers for an integer input of the same dtype. Grey images get the channel axis that the
    model has and the file has not. What else does not fit is left for the model's own checks to
    name.

    Args:
        source: An `.npz` file, an image folder of class sub-folders (or of train/, test/ with
            such), or a named data set.
        expected: Says what the model takes, by input name; asked only when needed, since loading
            a model takes seconds and a bad file of samples should be refused at once.
        part: The split to take of a source that has splits; one without is taken whole.
        data_path: Where a named data set lies; "auto" downloads it.
        input_range: Least and greatest value that the model was trained on.

    Raises:
        ConfigurationError: Neither a name nor a path that exists, or options that do not fit.
        DataError: The data cannot be read, or are scaled quite otherwise than an integer input.
    """
    if input_range is not None and not input_range[0] < input_range[1]:
        raise ConfigurationError(
            f"Expected --input-range as LOW HIGH with LOW below HIGH. Received: "
            f"{input_range[0]:g} {input_range[1]:g}."
        )
    path = Path(source)
    if data_path != "auto" and source not in NAMES:
        raise ConfigurationError(
            f"--data-path says where a named data set lies ({', '.join(NAMES)}). "
            f"Received: the data {source}, which is no such name."
        )
    unit = True  # from 0 to 1, by construction
    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    names: tuple[str, ...]
    if source in NAMES:
        dataset = load(source, data_path)
        split = dataset.splits()[part]
        x, y, names = split.x, split.y, dataset.class_names
    elif path.is_dir():
        x, y, names = _images(path, part, expected())
    elif path.exists() or path.suffix or path.name != source:
        (x, y, _), names, unit = load_arrays(path, part=part), _class_names(path), False
    else:
        choose(source, NAMES, what="data set, file or folder")
        raise AssertionError("choose() raises for a name that is not there")
    takes = expected()
    if isinstance(x, dict):
        fitted: Any = {
            name: _fitted(value, takes.get(name), source, unit, input_range)
            for name, value in x.items()
        }
    else:
        only = next(iter(takes.values())) if len(takes) == 1 else None
        fitted = _fitted(x, only, source, unit, input_range)
    return Samples(fitted, y, names)


def _class_names(path: Path) -> tuple[str, ...]:
    return tuple(map(str, read_npz(path).get("class_names", ())))


def _images(
    path: Path, part: Part, expected: Mapping[str, Expected]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    shapes = [takes.shape for takes in expected.values()]
    if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0] or shapes[0][2] not in (1, 3):
        raise DataError(
            f"Expected a model of images, one input of shape (height, width, 1 or 3), to read the "
            f"image folder {path}. Received: a model that takes {shapes}. Pass an .npz file."
        )
    height, width, channels = (int(size or 0) for size in shapes[0])
    # A folder of splits (train/, test/) holds the classes a level deeper.
    folder = next((path / name for name in _SPLITS[part] if _has_folders(path / name)), path)
    return load_image_folder(folder, (height, width), channels)


def _has_folders(path: Path) -> bool:
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def _fitted(
    x: np.ndarray,
    takes: Expected | None,
    source: str,
    unit: bool,
    input_range: tuple[float, float] | None,
) -> np.ndarray:
    if takes is not None and takes.shape[-1:] == (1,) and x.ndim == len(takes.shape):
        x = x[..., np.newaxis]
    if takes is not None and x.dtype.kind in "iu" and str(x.dtype) == takes.dtype:
        return x  # codes, or token ids
    scales = takes.scales if takes is not None and input_range is None else None
    low, high = input_range or ((0.0, 255.0) if scales else (0.0, 1.0))
    takes_reals = takes is None or takes.range is not None or takes.dtype.startswith("float")
    if scales and (unit or x.dtype == np.uint8):
        say(
            f"{source}: taken from 0 to 255, unscaled, as layer {scales!r} of the model scales. "
            "Evaluate the file with --input-range 0 255."
        )
        return x.astype(np.float32) if x.dtype == np.uint8 else x * np.float32(255.0)
    if x.dtype == np.uint8 and takes_reals:
        say(f"Bytes of {source}: scaled from 0..255 to {low:g}..{high:g}.")
        x, unit = x.astype(np.float32) / np.float32(255.0), True
    if unit and (low, high) != (0.0, 1.0):
        x = x * np.float32(high - low) + np.float32(low)
    if takes is not None and takes.range is not None:
        _check_scaling(x, takes.range, source)
    return x


def _check_scaling(x: np.ndarray, limits: tuple[float, float], source: str) -> None:
    least, most = float(x.min()), float(x.max())
    low, high = limits
    width, seen = high - low, most - least
    if seen > _WIDER * width or 0 < seen < width / _NARROWER:
        raise DataError(
            f"Expected samples scaled as in training: the file's input holds values from "
            f"{low:.4g} to {high:.4g}. Received: values from {least:.4g} to {most:.4g} in "
            f"{source}. Say what the model was trained on, for example --input-range {low:.3g} "
            f"{high:.3g}, or scale the samples in the file."
        )
