"""Folders of images, one sub-folder a class."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdtflite.errors import ConfigurationError, DataError
from kdtflite.progress import track

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["class_folders", "load_image_folder", "shared_image_size"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)


def load_image_folder(
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int],
    channels: int = 3,
    *,
    class_names: tuple[str, ...] | None = None,
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads `path/<class>/<image>` for every class, upright and resized.

    Images are turned as their EXIF orientation says (phones store photographs lying on their
    side) and resized with bilinear interpolation, without keeping the aspect ratio. Classes and
    files are taken in the order of their names, sub-folders of a class included.

    Args:
        path: The folder that holds one sub-folder a class.
        image_size: Height and width in pixels, or one number for both.
        channels: 1 for grey, 3 for RGB.
        class_names: The classes in the order of their labels; by default the sub-folders' names,
            sorted. A sub-folder of another name is an error.
        quiet: Show no progress.

    Returns:
        x: Pixels, shape (images, height, width, channels), float32 in 0..1.
        y: Class of each image, shape (images,), int64.
        class_names: Name of each class.

    Raises:
        ConfigurationError: A size or number of channels that cannot be.
        DataError: No class folders, a class without images, or an image that cannot be read.
    """
    height, width = _checked_size(image_size)
    if channels not in _MODES:
        raise ConfigurationError(f"Expected 1 or 3 `channels`. Received: {channels}.")
    root = Path(path)
    folders = class_folders(root)
    if class_names is None:
        class_names = tuple(folder.name for folder in folders)
    strangers = [folder.name for folder in folders if folder.name not in class_names]
    if strangers:
        raise DataError(
            f"Expected the classes {', '.join(class_names)} in {root}. Received also: "
            f"{', '.join(strangers)}. Every split must have the training split's classes."
        )
    files: list[tuple[Path, int]] = []
    for folder in folders:
        found = _images(folder)
        if not found:
            raise DataError(
                f"Expected images ({', '.join(sorted(_SUFFIXES))}) in {folder}. Received: none. "
                "Remove the folder or add images of this class."
            )
        files += [(file, class_names.index(folder.name)) for file in found]
    x = np.empty((len(files), height, width, channels), np.float32)
    for index, (file, _) in enumerate(track(files, f"Reading images of {root.name}", quiet=quiet)):
        x[index] = _read_image(file, height, width, channels)
    return x, np.array([label for _, label in files], np.int64), class_names


def shared_image_size(root: Path) -> tuple[int, int]:
    """Returns the height and width that all images in the sub-folders of `root` have.

    Raises:
        ConfigurationError: They have several sizes, so that one must be chosen.
        DataError: No images, or one that cannot be read.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    for file in (file for folder in class_folders(root) for file in _images(folder)):
        size = _image_size(file)
        if first is None:
            first = file, size
        elif size != first[1]:
            raise ConfigurationError(
                f"The images in {root} have several sizes and must be brought to one: "
                f"{first[0].relative_to(root)} is {first[1]} (height, width), "
                f"{file.relative_to(root)} is {size}. Choose one: `data.image_size: [height, "
                "width]` in a recipe, image_size=(height, width) in Python."
            )
    if first is None:
        raise DataError(
            f"Expected images ({', '.join(sorted(_SUFFIXES))}) in the sub-folders of {root}. "
            "Received: none."
        )
    return first[1]


def class_folders(root: Path) -> list[Path]:
    """Returns the sub-folders of `root`, sorted by name, hidden ones left out.

    Raises:
        DataError: `root` is no folder or has no sub-folder.
    """
    if not root.is_dir():
        raise DataError(
            f"Expected a folder with one sub-folder of images a class. Received: {root}, which "
            f"{'is a file' if root.exists() else 'does not exist'}."
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
            f"Expected one sub-folder of images a class in {root}. Received: no sub-folders. "
            "Put the images of each class into a folder named like the class."
        )
    return folders


def _checked_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ConfigurationError(
            f"Expected `image_size` as (height, width) in whole pixels from 1 up. "
            f"Received: {image_size!r}."
        )
    return size


def _images(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"The image {file} cannot be read: {error}. Repair it or remove it from the folder."
        ) from error


def _image_size(file: Path) -> tuple[int, int]:
    # From the file's head alone: the pixels are read once the size is known.
    with _opened(file) as image:
        lies = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
        return image.size if lies else (image.height, image.width)


def _read_image(file: Path, height: int, width: int, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    with _opened(file) as image:
        upright = ImageOps.exif_transpose(image).convert(_MODES[channels])
        pixels = np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, channels).astype(np.float32) / np.float32(255.0)
