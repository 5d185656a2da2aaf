"""Refuses samples with NaN or infinity."""

from __future__ import annotations

import numpy as np

from kdtflite.errors import DataError

__all__ = ["refuse_not_finite"]


def refuse_not_finite(x: np.ndarray) -> None:
    """Raises if a sample holds NaN or infinity.

    Args:
        x: One sample or more, shape (samples, ...), numbers.

    Raises:
        DataError: How many do, and the first of them.
    """
    # min and max carry a NaN through and need no second array of the data's size.
    if np.isfinite(x.min()) and np.isfinite(x.max()):
        return
    bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    raise DataError(
        f"Expected finite samples. Received: NaN or infinity in {int(bad.sum())} of {len(x)} "
        f"samples, first in sample {int(bad.argmax())}. Drop or repair them."
    )
