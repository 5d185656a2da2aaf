"""The named data sets: digits, mnist, fashion_mnist, cifar10."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.data.npz import read_npz
from kdtflite.data.splits import Dataset, Split, as_labels, stratified_split
from kdtflite.errors import ConfigurationError, DataError, choose
from kdtflite.progress import track

__all__ = ["NAMES", "decode_jpegs", "load_dataset"]

_FOUR_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_TEST_SEED = 0
_Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Named:
    description: str
    license: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    held_out: float | int  # the default share or number of validation samples
    files: tuple[str, ...] = ()


_DIGIT_NAMES = tuple("0123456789")
_NAMED = {
    "digits": _Named(
        "1,797 handwritten digits of 8 by 8 pixels, embedded in scikit-learn.",
        "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)",
        _DIGIT_NAMES,
        (8, 8, 1),
        held_out=0.15,
    ),
    "mnist": _Named(
        "70,000 handwritten digits of 28 by 28 pixels; the official test split.",
        "CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)",
        _DIGIT_NAMES,
        (28, 28, 1),
        held_out=5000,
        files=("mnist.npz",),
    ),
    "fashion_mnist": _Named(
        "70,000 articles of clothing of 28 by 28 pixels; the official test split.",
        "MIT (Zalando SE)",
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        (28, 28, 1),
        held_out=5000,
        files=("fashion_mnist.npz",),
    ),
    "cifar10": _Named(
        "60,000 color images of 32 by 32 pixels; the official test split.",
        "not stated (Alex Krizhevsky)",
        (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        (32, 32, 3),
        held_out=5000,
        files=("cifar10.npz", "cifar10_jpeg.npz"),
    ),
}
NAMES = tuple(_NAMED)


@check_arguments
def load_dataset(
    name: str,
    path: str | os.PathLike[str] = "auto",
    *,
    seed: int = 0,
    validation_fraction: float | None = None,
    quiet: bool = False,
) -> Dataset:
    """Loads a data set by its name, pixels scaled to 0..1.

    Args:
        name: "digits" (part of scikit-learn; needs no network), "mnist", "fashion_mnist" or
            "cifar10".
        path: An `.npz` file with x_train, y_train, x_test and y_test, or the folder that holds
            `<name>.npz`; "auto" downloads it once through Keras, which keeps it. For cifar10 the
            file may hold JPEG bytes instead: `train_blob`, `train_offsets`, `train_labels` and
            the same for test, with image i at `blob[offsets[i]:offsets[i + 1]]`.
        seed: Chooses the validation samples. The test samples are the same for every seed, so
            that results of different seeds can be compared.
        validation_fraction: Share of the training samples held out for validation, class by
            class. By default 0.15 for digits and 5,000 samples for the others.
        quiet: Show no progress.

    Returns:
        The data set: x float32 in 0..1, shape (samples, height, width, channels).

    Raises:
        ConfigurationError: The name is unknown, or a fraction leaves a split empty.
        DataError: The file is missing, damaged or of another layout, or cannot be downloaded.

    Example:
        >>> import kdtflite
        >>> digits = kdtflite.data.load_dataset("digits")
        >>> digits.train.x.shape
        (1146, 8, 8, 1)
    """
    named = _NAMED[choose(name, NAMES, what="data set")]
    if validation_fraction is not None and not 0 < validation_fraction < 1:
        raise ConfigurationError(
            f"Expected `validation_fraction` between 0 and 1. Received: {validation_fraction}."
        )
    if name == "digits":
        if path != "auto":
            raise ConfigurationError(
                f"digits is part of scikit-learn and takes no path. Received: {path}."
            )
        note, arrays = "A quarter is held out as test.", _load_digits()
    elif path == "auto":
        note, arrays = "", _download(name)
    else:
        note, arrays = _read_file(name, named, _find_file(name, named, Path(path)), quiet=quiet)
    x, y = _scale_pixels(arrays["x_train"], named, name), _to_labels(arrays["y_train"])
    part = named.held_out if validation_fraction is None else float(validation_fraction)
    keep, held_out = stratified_split(y, part, seed=seed)
    return Dataset(
        name=name,
        train=Split(x[keep], y[keep]),
        validation=Split(x[held_out], y[held_out]),
        test=Split(_scale_pixels(arrays["x_test"], named, name), _to_labels(arrays["y_test"])),
        class_names=named.class_names,
        input_range=(0.0, 1.0),
        license=named.license,
        description=" ".join(filter(None, [named.description, note])),
    )


def decode_jpegs(blob: np.ndarray, offsets: np.ndarray, *, quiet: bool = False) -> np.ndarray:
    """Decodes JPEG files that are joined in one array of bytes.

    Pillow decodes with the accurate integer DCT: the pixels are those of TensorFlow's
    `decode_jpeg(dct_method="INTEGER_ACCURATE")`, not of its faster default.

    Args:
        blob: The bytes, shape (bytes,), uint8.
        offsets: The start of each file and the end of the last one, shape (images + 1,).
        quiet: Show no progress.

    Returns:
        Pixels, shape (images, height, width, 3), uint8.

    Raises:
        DataError: A file is not an image, or its size differs from the first one's.
    """
    from PIL import Image

    if len(offsets) < 2:
        raise DataError("Expected at least one JPEG image. Received: none.")
    data = blob.tobytes()
    pixels: np.ndarray | None = None
    for index in track(range(len(offsets) - 1), "Decoding JPEG images", quiet=quiet):
        try:
            with Image.open(io.BytesIO(data[offsets[index] : offsets[index + 1]])) as image:
                decoded = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DataError(
                f"JPEG image {index} cannot be decoded: {error}. Make or fetch the file again."
            ) from error
        if pixels is None:
            pixels = np.empty((len(offsets) - 1, *decoded.shape), np.uint8)
        if decoded.shape != pixels.shape[1:]:
            raise DataError(
                f"Expected images of one size, {pixels.shape[1:]} as the first. Received: "
                f"{decoded.shape} at image {index}."
            )
        pixels[index] = decoded
    assert pixels is not None
    return pixels


def _load_digits() -> _Arrays:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Gray levels run from 0 to 16.
    x, y = bunch.images.astype(np.float32) / 16.0, bunch.target
    keep, held_out = stratified_split(y, 0.25, seed=_TEST_SEED)
    return {"x_train": x[keep], "y_train": y[keep], "x_test": x[held_out], "y_test": y[held_out]}


def _download(name: str) -> _Arrays:
    import tf_keras as keras

    fetch: Callable[[], tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]]
    fetch = getattr(keras.datasets, name).load_data
    try:
        parts = fetch()
    except Exception as error:  # Keras wraps every network failure in a plain Exception.
        raise DataError(
            f"{name} could not be downloaded: {error}. Without a network, pass the file: "
            f"path=`{name}.npz` (x_train, y_train, x_test, y_test) or the folder that holds it."
        ) from error
    (x_train, y_train), (x_test, y_test) = parts
    return dict(zip(_FOUR_ARRAYS, (x_train, y_train, x_test, y_test), strict=True))


def _find_file(name: str, named: _Named, path: Path) -> Path:
    if not path.is_dir():
        return path
    for file in named.files:
        if (path / file).is_file():
            return path / file
    raise DataError(
        f"Expected {' or '.join(named.files)} for {name} in the folder {path}. Received: "
        f"{', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'an empty folder'}. "
        'Pass the file itself, or path="auto" to download it.'
    )


def _read_file(name: str, named: _Named, path: Path, *, quiet: bool) -> tuple[str, _Arrays]:
    arrays = read_npz(path)
    if name == "cifar10" and "train_blob" in arrays:
        wanted = [f"{p}_{k}" for p in ("train", "test") for k in ("blob", "offsets", "labels")]
        _check_arrays(path, arrays, wanted)
        pixels = {
            part: decode_jpegs(arrays[f"{part}_blob"], arrays[f"{part}_offsets"], quiet=quiet)
            for part in ("train", "test")
        }
        return (
            "JPEG re-encoding, decoded by Pillow: not comparable with figures on the original "
            f"pixels. {len(pixels['test']):,} test images.",
            {
                "x_train": pixels["train"],
                "y_train": arrays["train_labels"],
                "x_test": pixels["test"],
                "y_test": arrays["test_labels"],
            },
        )
    _check_arrays(path, arrays, _FOUR_ARRAYS)
    return "", {key: arrays[key] for key in _FOUR_ARRAYS}


def _check_arrays(path: Path, arrays: _Arrays, wanted: list[str] | tuple[str, ...]) -> None:
    missing = [key for key in wanted if key not in arrays]
    if missing:
        raise DataError(
            f"Expected {', '.join(wanted)} in {path}. Received: "
            f"{', '.join(arrays) or 'no arrays'}. For your own file, pass its path instead of the "
            "name of a data set."
        )


def _to_labels(y: np.ndarray) -> np.ndarray:
    return as_labels(y, quiet=True)


def _scale_pixels(x: np.ndarray, named: _Named, name: str) -> np.ndarray:
    """Returns images as float32 in 0..1, with a channel axis."""
    if x.ndim == 3:
        x = x[..., np.newaxis]
    if x.ndim != 4 or x.shape[1:] != named.image_shape:
        raise DataError(
            f"Expected images of shape {named.image_shape} for {name}. Received: an array of "
            f"shape {x.shape}. Is it another data set's file?"
        )
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255.0)
    if name == "digits":
        return x
    raise DataError(
        f"Expected pixels 0..255 as uint8 for {name}, as Keras ships it. Received: {x.dtype}. "
        "For data that are scaled already, pass the path of the file instead of the name."
    )
