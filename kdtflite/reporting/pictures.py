"""Samples as small PNG pictures inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["picture"]

_SIDE = 112  # Pixels: what a card of the page shows.


def picture(image: Any) -> str | None:
    """Returns an image as a `data:image/png;base64` URI, or None if it cannot be a picture.

    Small images grow by a whole factor without smoothing, so that their pixels can be seen;
    large ones shrink.

    Args:
        image: Nested lists or an array, H×W, H×W×1 (grey) or H×W×3 (RGB), values from 0 to 1.
    """
    try:
        values = np.asarray(image, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    is_picture = values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3)
    if not is_picture or min(values.shape) < 1:
        return None
    pixels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    drawn = Image.fromarray(pixels)
    factor = _SIDE // max(drawn.size)
    if factor > 1:
        drawn = drawn.resize(
            (drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST
        )
    else:
        drawn.thumbnail((2 * _SIDE, 2 * _SIDE))
    data = io.BytesIO()
    drawn.save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
