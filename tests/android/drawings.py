"""Writes drawings with the images that Python makes of them, for the app's code to repeat.

    python tests/android/drawings.py drawings.json

writes a JSON list of {"width", "height", "gray", "size", "box", "image"}: the canvas (height ×
width bytes, row by row) and the size × size bytes made of it, both in base64. The first few are
extreme; the others are random strokes. Most images look like MNIST's digits; every fourth has no
margin, like scikit-learn's. The same call writes the same file.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np

from kdtflite.data.drawing import to_image
from kdtflite.files import write_text

__all__ = ["draw_extremes", "draw_strokes", "make_drawings", "write"]


def write(path: Path, count: int = 200) -> None:
    """Writes the extreme drawings and `count` sets of random strokes."""
    entries = []
    for number, gray in enumerate(make_drawings(count)):
        size, box = (8, 8) if number % 4 == 3 else (28, 20)
        image = to_image(gray, size, box)
        entries.append(
            {
                "width": gray.shape[1],
                "height": gray.shape[0],
                "gray": base64.b64encode(gray.tobytes()).decode(),
                "size": size,
                "box": box,
                "image": base64.b64encode(image.tobytes()).decode(),
            }
        )
    write_text(path, json.dumps(entries, indent=0) + "\n", overwrite=True)


def make_drawings(count: int = 200) -> list[np.ndarray]:
    """Returns canvases, shape (height, width), uint8: extreme ones, then random strokes."""
    rng = np.random.default_rng(2026)
    return [*draw_extremes(), *(draw_strokes(rng) for _ in range(count))]


def draw_extremes() -> list[np.ndarray]:
    """Returns the most extreme drawings that are possible."""
    single = np.zeros((5, 7), np.uint8)
    single[4, 0] = 1
    thin = np.zeros((3, 100), np.uint8)
    thin[1] = 255
    faint = np.zeros((90, 90), np.uint8)  # nothing of it is left after scaling
    faint[0, 0] = faint[-1, -1] = 1
    corner = np.zeros((64, 48), np.uint8)  # its center of mass would push it over the edge
    corner[:, 0] = 1
    corner[-2:, -2:] = 255
    return [
        np.zeros((40, 30), np.uint8),
        np.full((1, 1), 255, np.uint8),
        np.full((61, 33), 255, np.uint8),
        single,
        thin,
        np.ascontiguousarray(thin.T),
        faint,
        corner,
        np.ascontiguousarray(corner[::-1, ::-1]),
        np.random.default_rng(1).integers(0, 256, (301, 467), np.uint8),
        np.indices((29, 31)).sum(axis=0).astype(np.uint8) % 2 * 255,
    ]


def draw_strokes(rng: np.random.Generator) -> np.ndarray:
    """Returns a canvas with one to four strokes of a round, soft-edged pen."""
    height, width = rng.integers(24, 140, 2)
    y, x = np.indices((height, width)) + 0.5
    radius = rng.uniform(0.4, max(height, width) / 12)
    distance = np.full((height, width), np.inf)
    for _ in range(rng.integers(1, 5)):
        steps = rng.normal(0, max(height, width) / 8, (rng.integers(1, 9), 2))
        points = rng.uniform((0, 0), (height, width)) + np.cumsum(steps, axis=0)
        for start, end in zip(points, [*points[1:], points[-1]], strict=True):
            along = end - start
            share = ((y - start[0]) * along[0] + (x - start[1]) * along[1]) / max(
                float(along @ along), 1e-9
            )
            share = np.clip(share, 0, 1)
            away = np.hypot(y - start[0] - share * along[0], x - start[1] - share * along[1])
            distance = np.minimum(distance, away)
    return np.round(np.clip(radius + 0.5 - distance, 0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/android/drawings.py OUTPUT.json")
    write(Path(sys.argv[1]))
