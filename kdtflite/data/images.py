"""Folders of images, one subfolder per class."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.data.classes import is_number
from kdtflite.errors import ConfigurationError, DataError, KdtfliteError, to_line
from kdtflite.progress import say, track

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["find_image_size", "list_class_folders", "load_image_folder", "load_images"]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112
_ROTATED = (5, 6, 7, 8)  # by a quarter turn: width and height change places
_PHOTOMETRIC = 262  # tag of a TIFF: 0 if 0 is white
_WORD = 65535
# What Pillow's decoders raise on damaged files.
_FAULTS = (
    *(OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError),
    *(EOFError, OverflowError, ZeroDivisionError, NotImplementedError, MemoryError),
    *(struct.error, zlib.error),
)


@check_arguments
def load_image_folder(
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int],
    channels: int = 3,
    *,
    class_names: tuple[str, ...] | None = None,
    leave_out: Collection[str] = (),
    quiet: bool = False,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads `path/<class>/<image>` for every class, upright and resized.

    Images are rotated as their EXIF orientation says (phones store photographs on their side) and
    resized with bilinear interpolation, without keeping the aspect ratio. 16-bit pixels are scaled
    from 0..65,535, floating-point pixels must lie in 0..1; of an animation the first frame is
    taken, and transparency is dropped: each is reported. Classes and files are taken in the order
    of their names, classes that are named by numbers in the order of the numbers. Subfolders of a
    class are included.

    Args:
        path: The folder that holds one subfolder per class.
        image_size: Height and width in pixels, or one number for both.
        channels: 1 for gray, 3 for RGB.
        class_names: The classes in the order of their labels; by default the subfolders' names,
            sorted. A subfolder of another name is an error.
        leave_out: Names of subfolders that are no classes.
        quiet: Show no progress.

    Returns:
        x: Pixels, shape (images, height, width, channels), float32 in 0..1.
        y: Class of each image, shape (images,), int64.
        class_names: Name of each class.

    Raises:
        ConfigurationError: The size or the number of channels is not possible.
        DataError: There are no class folders, a class has no images, or an image cannot be read
            or has pixels without a known range.
    """
    root = Path(path)
    folders = [folder for folder in list_class_folders(root) if folder.name not in leave_out]
    if class_names is None:
        class_names = tuple(folder.name for folder in folders)
    unknown = [folder.name for folder in folders if folder.name not in class_names]
    if unknown:
        raise DataError(
            f"Expected the classes {', '.join(class_names)} in {root}. Received also: "
            f"{', '.join(unknown)}. Every split must have the training split's classes."
        )
    files: list[tuple[Path, int]] = []
    for folder in folders:
        files += [(file, class_names.index(folder.name)) for file in _require_images(folder)]
    x = _read_images(root, [file for file, _ in files], image_size, channels, quiet=quiet)
    return x, np.array([label for _, label in files], np.int64), class_names


def load_images(
    folder: Path, image_size: int | tuple[int, int], channels: int = 3, *, quiet: bool = False
) -> np.ndarray:
    """Reads all images of a folder and its subfolders, as `load_image_folder` reads those of one.

    Args:
        folder: The folder.
        image_size: Height and width in pixels, or one number for both.
        channels: 1 for gray, 3 for RGB.
        quiet: Show no progress.

    Returns:
        Pixels, shape (images, height, width, channels), float32 in 0..1.

    Raises:
        ConfigurationError: The size or the number of channels is not possible.
        DataError: There are no images, or one cannot be read.
    """
    return _read_images(folder, _require_images(folder), image_size, channels, quiet=quiet)


def _require_images(folder: Path) -> list[Path]:
    found = _list_images(folder)
    if not found:
        raise DataError(
            f"Expected images ({', '.join(sorted(_SUFFIXES))}) in {folder}. Received: none. "
            "Remove the folder or add images to it."
        )
    return found


def _read_images(
    root: Path,
    files: list[Path],
    image_size: int | tuple[int, int],
    channels: int,
    *,
    quiet: bool,
) -> np.ndarray:
    """Reads images and reports what is special about some."""
    height, width = _check_size(image_size)
    if channels not in _MODES:
        raise ConfigurationError(f"Expected 1 or 3 `channels`. Received: {channels}.")
    x = np.empty((len(files), height, width, channels), np.float32)
    notes: Counter[str] = Counter()
    first: dict[str, Path] = {}
    for index, file in enumerate(track(files, f"Reading images of {root.name}", quiet=quiet)):
        x[index], special = _read_image(file, height, width, channels)
        notes.update(special)
        for note in special:
            first.setdefault(note, file)
    for note, count in notes.items():
        if not quiet:
            say(
                f"Images in {root}: {count} of {len(files)} {note}, for example "
                f"{first[note].relative_to(root)}."
            )
    return x


def find_image_size(root: Path) -> tuple[int, int]:
    """Returns the height and width that all images in the subfolders of `root` share.

    Raises:
        ConfigurationError: The images have several sizes, so that one must be chosen.
        DataError: There are no images, or one cannot be read.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    for file in (file for folder in list_class_folders(root) for file in _list_images(folder)):
        size = _read_size(file)
        if first is None:
            first = file, size
        elif size != first[1]:
            raise ConfigurationError(
                f"The images in {root} have several sizes and must be resized to one: "
                f"{first[0].relative_to(root)} is {first[1]} (height, width), "
                f"{file.relative_to(root)} is {size}. Choose one: `data.image_size: [height, "
                "width]` in a recipe, image_size=(height, width) in Python."
            )
    if first is None:
        raise DataError(
            f"Expected images ({', '.join(sorted(_SUFFIXES))}) in the subfolders of {root}. "
            "Received: none."
        )
    return first[1]


def list_class_folders(root: Path) -> list[Path]:
    """Returns the subfolders of `root` sorted by name, or by number if all are named by numbers.

    Hidden ones are left out.

    Raises:
        DataError: `root` is not a folder or has no subfolder, two have the same number, or a name
            is not UTF-8.
    """
    if not root.is_dir():
        raise DataError(
            f"Expected a folder with one subfolder of images per class. Received: {root}, which "
            f"{'is a file' if root.exists() else 'does not exist'}."
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
            f"Expected one subfolder of images per class in {root}. Received: no subfolders. "
            "Put the images of each class into a folder named like the class."
        )
    for folder in folders:
        if (name := os.fsencode(folder.name)) != folder.name.encode(errors="replace"):
            raise DataError(
                f"Expected folders with names in UTF-8 in {root}. Received: {name!r}. Rename it: "
                "the names become the classes' labels in the file and the report."
            )
    if not all(is_number(folder.name) for folder in folders):
        return folders
    numbers = {int(folder.name): folder for folder in reversed(folders)}
    if len(numbers) < len(folders):
        same = [folder.name for folder in folders if folder not in numbers.values()]
        raise DataError(
            f"Expected one folder per class in {root}. Received: several for class "
            f"{int(same[0])}. Put their images together."
        )
    return [numbers[number] for number in sorted(numbers)]


def _check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ConfigurationError(
            f"Expected `image_size` as (height, width) in whole pixels from 1 up. "
            f"Received: {image_size!r}."
        )
    return size


def _list_images(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _SUFFIXES and p.is_file() and not p.name.startswith(".")
    )


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Image.Image]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except KdtfliteError:
        raise
    except (*_FAULTS, Image.DecompressionBombError) as error:
        raise DataError(
            f"The image {file} cannot be read: {to_line(error)}. Repair it or remove it from the "
            "folder."
        ) from error


def _read_size(file: Path) -> tuple[int, int]:
    # Reads only the file's header; the pixels are read once the size is known.
    with _open(file) as image:
        rotated = image.getexif().get(_ORIENTATION) in _ROTATED
        return image.size if rotated else (image.height, image.width)


def _read_image(file: Path, height: int, width: int, channels: int) -> tuple[np.ndarray, list[str]]:
    """Returns pixels from 0 to 1, and what is special about the image."""
    from PIL import Image, ImageOps

    notes = []
    with _open(file) as image:
        if getattr(image, "n_frames", 1) > 1:
            notes.append("have several frames, of which the first is used")
        deep = _read_deep_pixels(image, file)
        if deep is not None:
            notes.append(
                "have floating-point pixels, which are used as they are"
                if image.mode == "F"
                else "have 16-bit pixels, which are scaled from 0..65535 to 0..1"
            )
            gray = ImageOps.exif_transpose(_keep_orientation(Image.fromarray(deep), image))
            pixels = np.asarray(gray.resize((width, height), Image.Resampling.BILINEAR))
            return np.repeat(pixels[..., np.newaxis], channels, axis=2), notes
        if _is_transparent(image):
            notes.append("have transparent pixels, whose stored color is used")
        upright = ImageOps.exif_transpose(image).convert(_MODES[channels])
        pixels = np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, channels).astype(np.float32) / np.float32(255.0), notes


def _read_deep_pixels(image: Image.Image, file: Path) -> np.ndarray | None:
    """Returns gray pixels of more than 8 bits from 0 to 1, float32; None for other images.

    Pillow would clip them to 0..255.
    """
    # Older versions of Pillow open a 16-bit PNG as "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        share = np.asarray(image, np.float32) / np.float32(_WORD)
        # Pillow inverts a TIFF whose 0 is white only if it has 8 bits.
        return 1 - share if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 else share
    if image.mode == "I":
        values = np.asarray(image)
        raise DataError(
            f"The image {file} has 32-bit or signed pixels, from {values.min()} to "
            f"{values.max()}, whose range is not known. Expected 8 or 16 bits per pixel, or "
            "floating-point pixels from 0 to 1. Convert it."
        )
    if image.mode != "F":
        return None
    values = np.asarray(image, np.float32)
    if not (values.min() >= 0 and values.max() <= 1):  # and not NaN
        raise DataError(
            f"The image {file} has floating-point pixels from {values.min():g} to "
            f"{values.max():g}. Expected values from 0 to 1. Scale it, or convert it to 8 bits."
        )
    return values


def _keep_orientation(pixels: Image.Image, image: Image.Image) -> Image.Image:
    pixels.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return pixels


def _is_transparent(image: Image.Image) -> bool:
    if image.mode not in ("LA", "PA", "RGBA", "La", "RGBa"):
        return "transparency" in image.info
    least = image.getchannel(image.getbands()[-1]).getextrema()[0]
    return isinstance(least, int | float) and least < 255
