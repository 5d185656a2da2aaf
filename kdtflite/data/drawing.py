"""Turns a drawing into an image like those of MNIST, byte for byte as the phone does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, DataError

__all__ = ["to_image"]

Bytes = npt.NDArray[np.uint8]


@check_arguments
def to_image(gray: npt.ArrayLike, size: int = 28, box: int | None = None) -> Bytes:
    """Crops, scales and centers a drawing as MNIST's digits were (LeCun et al., 1998).

    MNIST's digits were scaled into 20 × 20 pixels with anti-aliasing, keeping their aspect ratio,
    and placed into 28 × 28 pixels with the center of mass in the middle. Here each step is exact
    in integers, so that the demo app's `Drawing.toImage` gives the same bytes:

    1. The bounding box of all pixels that are not 0 is cut out.
    2. Its longer side becomes `box` pixels; the other side keeps the aspect ratio, with halves
       rounded up, and has at least one pixel. A new pixel is the mean of the area that it covers,
       with halves rounded up.
    3. The result is moved so that its center of mass lies in the pixel that begins in the middle
       (from 14 to below 15, as in every image of MNIST), but never over the edge.

    Args:
        gray: The canvas, shape (height, width), uint8. 0 is paper, 255 is ink.
        size: Height and width of the image.
        box: Longer side of the drawing in the image, in pixels. The default is MNIST's,
            round(size · 20 / 28). scikit-learn's digits have no margin: pass `size` for them.

    Returns:
        The image, shape (size, size), uint8. It is all 0 for an empty canvas, and for ink so faint
        that nothing of it is left. Models take it as real values, for example divided by 255; their
        metadata say how.

    Raises:
        DataError: `gray` is not such an array.
        ConfigurationError: `size` is below 1, or `box` is not from 1 to `size`.

    Example:
        >>> import numpy as np
        >>> from kdtflite.data import to_image
        >>> canvas = np.zeros((100, 100), np.uint8)
        >>> canvas[10:60, 20:30] = 255
        >>> to_image(canvas).shape
        (28, 28)
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
    small = _scale(drawing, box)
    if not small.any():
        return image
    top, left = (_find_offset(small.sum(axis=axis, dtype=np.int64), size) for axis in (1, 0))
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    return image


def _scale(drawing: Bytes, box: int) -> Bytes:
    longest = max(drawing.shape)
    height, width = (max(1, (2 * side * box + longest) // (2 * longest)) for side in drawing.shape)
    vertical = _measure_overlaps(drawing.shape[0], height)
    horizontal = _measure_overlaps(drawing.shape[1], width)
    # float64 products are fast, and exact below 2^53; the sums are at most 255 · pixels.
    sums = (vertical @ drawing.astype(np.float64) @ horizontal.T).astype(np.int64)
    return ((2 * sums + drawing.size) // (2 * drawing.size)).astype(np.uint8)


def _measure_overlaps(source: int, target: int) -> npt.NDArray[np.float64]:
    """Returns how much of each source pixel each target pixel covers, shape (target, source).

    Both lie on a line of source · target units, on which every edge is a whole number.
    """
    starts, begins = np.arange(target)[:, np.newaxis] * source, np.arange(source) * target
    shared = np.minimum(starts + source, begins + target) - np.maximum(starts, begins)
    return np.maximum(shared, 0).astype(np.float64)


def _find_offset(mass: npt.NDArray[np.int64], size: int) -> int:
    """Returns ceil(size / 2 - center of mass), limited so that the drawing stays inside."""
    total = int(mass.sum())
    # Twice the moment: the middle of pixel i lies at i + 1/2.
    moment = int((mass * (2 * np.arange(len(mass)) + 1)).sum())
    offset = -((moment - size * total) // (2 * total))
    return min(max(offset, 0), size - len(mass))
