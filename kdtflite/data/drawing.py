"""A drawing becomes an image as MNIST's were made, byte by byte as on the phone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtflite.errors import ConfigurationError, DataError

__all__ = ["to_image"]

Bytes = npt.NDArray[np.uint8]


def to_image(gray: npt.ArrayLike, size: int = 28, box: int | None = None) -> Bytes:
    """Crops, scales and centres a drawing as MNIST's digits were (LeCun et al., 1998).

    MNIST's were fitted into 20 × 20 pixels with their aspect ratio kept, anti-aliased, and put into
    28 × 28 pixels so that the centre of mass lies in the middle. Here each step is exact in
    integers, so that the demo app's `Drawing.toImage` gives the same bytes:

    1. The bounding box of all pixels from 1 up is cut out.
    2. Its longer side becomes `box` pixels, the other side as many as keep the aspect ratio,
       halves rounded up, at least one. A new pixel is the mean of the area that it covers, halves
       rounded up.
    3. The result is moved so that its centre of mass lies in the pixel that begins in the middle,
       where it lies in every image of MNIST, from 14 to below 15; and not over the edge.

    Args:
        gray: The canvas, shape (height, width), uint8; 0 is paper, 255 is ink.
        size: Height and width of the image.
        box: Longer side of the drawing in the image, in pixels. By default MNIST's,
            round(size · 20 / 28); scikit-learn's digits have no margin, so that theirs is `size`.

    Returns:
        The image, shape (size, size), uint8; all 0 for an empty canvas, and for ink so faint that
        nothing is left of it. Models take it as real values: divided by 255 and so on, as their
        metadata say.

    Raises:
        DataError: `gray` is no such array.
        ConfigurationError: `size` below 1, or `box` not from 1 to `size`.
    """
    canvas = np.asarray(gray)
    if canvas.dtype != np.uint8 or canvas.ndim != 2 or canvas.size == 0:
        raise DataError(
            "Expected a drawing as bytes (uint8) of shape (height, width). Received: "
            f"{canvas.dtype}, shape {canvas.shape}."
        )
    if size < 1:
        raise ConfigurationError(f"Expected size from 1 pixel up. Received: {size}.")
    box = max(1, (size * 20 + 14) // 28) if box is None else box
    if not 1 <= box <= size:
        raise ConfigurationError(f"Expected box from 1 to {size} pixels. Received: {box}.")
    image = np.zeros((size, size), np.uint8)
    inked = canvas > 0
    rows, columns = (np.flatnonzero(inked.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return image
    drawing = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = _scaled(drawing, box)
    if not small.any():
        return image
    top, left = (_offset(small.sum(axis=axis, dtype=np.int64), size) for axis in (1, 0))
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    return image


def _scaled(drawing: Bytes, box: int) -> Bytes:
    longest = max(drawing.shape)
    height, width = (max(1, (2 * side * box + longest) // (2 * longest)) for side in drawing.shape)
    vertical = _overlaps(drawing.shape[0], height)
    horizontal = _overlaps(drawing.shape[1], width)
    # In float64, whose products are fast and, below 2^53, exact: the sums are 255 · pixels at most.
    sums = (vertical @ drawing.astype(np.float64) @ horizontal.T).astype(np.int64)
    return ((2 * sums + drawing.size) // (2 * drawing.size)).astype(np.uint8)


def _overlaps(source: int, target: int) -> npt.NDArray[np.float64]:
    """Returns how much of each source pixel each target pixel covers, shape (target, source).

    Both are laid on a line of source · target units, where all their ends are whole numbers.
    """
    starts, begins = np.arange(target)[:, np.newaxis] * source, np.arange(source) * target
    shared = np.minimum(starts + source, begins + target) - np.maximum(starts, begins)
    return np.maximum(shared, 0).astype(np.float64)


def _offset(mass: npt.NDArray[np.int64], size: int) -> int:
    """Returns ceil(size / 2 - centre of mass), where the drawing stays inside."""
    total = int(mass.sum())
    # Twice the moment: the middle of pixel i lies at i + 1/2.
    moment = int((mass * (2 * np.arange(len(mass)) + 1)).sum())
    offset = -((moment - size * total) // (2 * total))
    return min(max(offset, 0), size - len(mass))
