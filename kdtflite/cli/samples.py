"""The samples of a command: an .npz file, an image folder or a named data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kdtflite.data.files import find_pixel_range, load_arrays, read_class_names
from kdtflite.data.images import load_image_folder
from kdtflite.data.named import NAMES
from kdtflite.data.sources import load
from kdtflite.errors import ConfigurationError, DataError, choose
from kdtflite.progress import say

if TYPE_CHECKING:
    from kdtflite.lite.model import LiteModel

__all__ = ["ModelInput", "Samples", "read_samples", "read_test_samples"]

Part = Literal["train", "test"]
_SPLITS: dict[Part, tuple[str, ...]] = {"train": ("train", "training"), "test": ("test", "testing")}

# As for representative data: samples so much wider or narrower than the model's range must have
# another scaling.
_MAX_WIDER = 4.0
_MAX_NARROWER = 32.0


@dataclass(frozen=True)
class ModelInput:
    """An input of a model, as far as it is known.

    Attributes:
        shape: Shape of one sample; None for a dimension of any size.
        dtype: "float32", "int8", ...
        range: The smallest and the largest real value that an integer input can hold.
        scaling_layer: Name of the model's first layer if that scales bytes; such a model takes
            bytes unscaled.
    """

    shape: tuple[int | None, ...]
    dtype: str
    range: tuple[float, float] | None = None
    scaling_layer: str | None = None


class Samples(NamedTuple):
    """Samples in the shape and scaling of a model's inputs.

    Attributes:
        x: Shape (samples, ...), or a dict of such arrays by input name.
        y: Class of each sample, or None if the source has no labels.
        class_names: Name of each class; empty if the source has no names.
        is_numbered: Whether the source numbers its classes itself; those of a folder are sorted.
    """

    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    class_names: tuple[str, ...]
    is_numbered: bool


def read_test_samples(
    source: str,
    lite: LiteModel,
    data_path: str,
    input_range: tuple[float, float] | None,
    read_labels: Callable[[Any], np.ndarray] | None = None,
) -> Samples:
    """Reads the test split in the form that a .tflite file takes; see `read_samples`."""
    inputs = {
        spec.name: ModelInput(spec.sample_shape, spec.dtype, spec.range) for spec in lite.inputs
    }
    return read_samples(
        source,
        lambda: inputs,
        part="test",
        data_path=data_path,
        input_range=input_range,
        read_labels=read_labels,
    )


def read_samples(
    source: str,
    get_inputs: Callable[[], Mapping[str, ModelInput]],
    *,
    part: Part,
    data_path: str = "auto",
    input_range: tuple[float, float] | None = None,
    read_labels: Callable[[Any], np.ndarray] | None = None,
) -> Samples:
    """Reads samples, and labels if there are any, in the form that a model takes.

    Bytes, images and named data sets are scaled to `input_range` (by default 0..1, or 0..255 for
    a model that scales them itself). Floating-point samples of a file stay as they are, and so do
    integers for an integer input of the same dtype. Gray images get the channel axis if the model
    has one. Anything else that does not fit is refused later, by the model's own checks.

    Args:
        source: An `.npz` file, an image folder with one sub-folder per class (or with train/ and
            test/ that hold them), or a named data set.
        get_inputs: Returns the model's inputs by name. It is called only when needed, since
            loading a model takes seconds and a bad file of samples should be refused at once.
        part: The split to read; a source without splits is read whole.
        data_path: Where a named data set is; "auto" downloads it.
        input_range: The smallest and the largest value that the model was trained on.
        read_labels: Returns the labels of a file in the form of a task; by default as classes.

    Raises:
        ConfigurationError: `source` is neither a name nor an existing path, or options do not
            fit it.
        DataError: The data cannot be read, or their scaling does not fit an integer input.
    """
    if input_range is not None and not input_range[0] < input_range[1]:
        raise ConfigurationError(
            f"Expected --input-range as LOW HIGH with LOW below HIGH. Received: "
            f"{input_range[0]:g} {input_range[1]:g}."
        )
    path = Path(source)
    if data_path != "auto" and source not in NAMES:
        raise ConfigurationError(
            f"Expected --data-path only with a named data set ({', '.join(NAMES)}). "
            f"Received: --data-path with the data {source}."
        )
    is_unit = True  # from 0 to 1, by construction
    x: np.ndarray | dict[str, np.ndarray]
    y: np.ndarray | None
    names: tuple[str, ...]
    if source in NAMES:
        dataset = load(source, data_path)
        split = dataset.splits[part]
        x, y, names = split.x, split.y, dataset.class_names
    elif path.is_dir():
        x, y, names = _load_images(path, part, get_inputs())
    elif path.exists() or path.suffix or path.name != source:
        x, y, _ = load_arrays(path, part=part, read_labels=read_labels)
        names, is_unit = read_class_names(path), False
    else:
        choose(source, NAMES, what="data set, file or folder")
        raise AssertionError("choose() raises for a name that is not there")
    inputs = get_inputs()
    adapted: Any
    if isinstance(x, dict):
        adapted = {
            name: _adapt(value, inputs.get(name), source, is_unit, input_range)
            for name, value in x.items()
        }
    else:
        only = next(iter(inputs.values())) if len(inputs) == 1 else None
        adapted = _adapt(x, only, source, is_unit, input_range)
    return Samples(adapted, y, names, is_numbered=not path.is_dir() or source in NAMES)


def _load_images(
    path: Path, part: Part, inputs: Mapping[str, ModelInput]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    shapes = [each.shape for each in inputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0] or shapes[0][2] not in (1, 3):
        raise DataError(
            f"Expected a model with one input of shape (height, width, 1 or 3) to read the image "
            f"folder {path}. Received: a model with inputs of shape {shapes}. Pass an .npz file."
        )
    height, width, channels = (int(size or 0) for size in shapes[0])
    # A folder with splits (train/, test/) holds the classes one level deeper.
    folder = next((path / name for name in _SPLITS[part] if _has_folders(path / name)), path)
    return load_image_folder(folder, (height, width), channels)


def _has_folders(path: Path) -> bool:
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def _adapt(
    x: np.ndarray,
    model_input: ModelInput | None,
    source: str,
    is_unit: bool,
    input_range: tuple[float, float] | None,
) -> np.ndarray:
    model_input = model_input or ModelInput((), "float32")
    if model_input.shape[-1:] == (1,) and x.ndim == len(model_input.shape):
        x = x[..., np.newaxis]
    if x.dtype.kind in "iu" and str(x.dtype) == model_input.dtype:
        return x  # codes, or token ids
    layer = model_input.scaling_layer if input_range is None else None
    low, high = input_range or ((0.0, 255.0) if layer else (0.0, 1.0))
    takes_reals = model_input.range is not None or model_input.dtype.startswith("float")
    top = find_pixel_range([x]) if takes_reals or layer else None
    if layer and (is_unit or top == 255):
        say(
            f"{source}: used unscaled, from 0 to 255, since layer {layer!r} of the model scales "
            "it. Evaluate the file with --input-range 0 255."
        )
        return x.astype(np.float32) if x.dtype == np.uint8 else x * np.float32(255.0)
    if top and takes_reals:
        what = "Bytes" if top == 255 else "16-bit pixels"
        say(f"{what} of {source}: scaled from 0..{top} to {low:g}..{high:g}.")
        x, is_unit = x.astype(np.float32) / np.float32(top), True
    if is_unit and (low, high) != (0.0, 1.0):
        x = x * np.float32(high - low) + np.float32(low)
    if model_input.range is not None:
        _check_scaling(x, model_input.range, source)
    return x


def _check_scaling(x: np.ndarray, limits: tuple[float, float], source: str) -> None:
    smallest, largest = float(x.min()), float(x.max())
    low, high = limits
    expected, received = high - low, largest - smallest
    if received > _MAX_WIDER * expected or 0 < received < expected / _MAX_NARROWER:
        raise DataError(
            f"Expected samples scaled as in training: the file's input holds values from "
            f"{low:.4g} to {high:.4g}. Received: values from {smallest:.4g} to {largest:.4g} in "
            f"{source}. Pass the range that the model was trained on, for example --input-range "
            f"{low:.3g} {high:.3g}, or scale the samples in the file."
        )
