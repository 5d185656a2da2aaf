"""Measures how well a file reads drawings: MNIST's test images through the app's preprocessing.

    python benchmarks/drawings.py student.tflite --data shared/data

Each test image is drawn on a phone's canvas, with some size at some place, and read back through
`kdtflite.data.to_image`, which gives the same bytes as the app's Kotlin code. The accuracy on the
result is compared with the accuracy on the original images.

- identical: each pixel becomes a square of the canvas, in place. Tests only cropping, scaling and
  centering.
- smooth: enlarged 4 to 16 times by bicubic interpolation, at a random place.
- inked: the same with full contrast, like a pen: ink or paper, with soft edges one pixel wide.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdtflite.data import load, to_image
from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import sha256, write_json, write_text
from kdtflite.lite.model import LiteModel
from kdtflite.progress import track

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "drawings.json"
CANVAS = 560
WAYS = ("identical", "smooth", "inked")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a .tflite file that reads MNIST")
    parser.add_argument("--data", type=Path, help="folder with mnist.npz")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    path = "auto" if arguments.data is None else arguments.data / "mnist.npz"
    test = load("mnist", path=path, seed=0).test
    images = np.round(test.x[: arguments.samples, ..., 0] * 255).astype(np.uint8)
    labels = test.y[: arguments.samples]
    lite = LiteModel.load(arguments.model)
    own = classify(lite, images)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "file": arguments.model.name,
        "sha256": sha256(arguments.model),
        "bytes": len(lite.content),
        "samples": len(images),
        "accuracy": compute_share(own == labels),
        "drawings": [],
    }
    for way in WAYS:
        rng = np.random.default_rng(arguments.seed)
        drawn = (to_image(draw(image, way, rng)) for image in images)
        read = np.stack(list(track(drawn, f"Drawing, {way}", total=len(images))))
        given = classify(lite, read)
        result["drawings"].append(
            {
                "way": way,
                "accuracy": compute_share(given == labels),
                "same_answer": compute_share(given == own),
                "same_bytes": compute_share((read == images).all(axis=(1, 2))),
                "same_place": compute_share(
                    [find_extent(a) == find_extent(b) for a, b in zip(read, images, strict=True)]
                ),
                "mean_difference": float(np.abs(read.astype(int) - images).mean()),
            }
        )
    write_json(arguments.json, result, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(result), overwrite=True)
    print(as_markdown(result), end="")


def draw(image: np.ndarray, way: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a canvas, shape (560, 560), uint8, with the digit on it."""
    if way == "identical":
        return np.kron(image, np.ones((CANVAS // 28, CANVAS // 28), np.uint8))
    side = int(28 * rng.uniform(4, 16))
    enlarged = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
    if way == "inked":
        # Half of full ink is the edge of the pen's stroke. There the gray rises by about
        # 255 / scale per pixel of the canvas; multiplied by the scale, the edge is a pixel wide.
        contrast = side / 28
        gray = (enlarged.astype(np.float64) - 127.5) * contrast + 127.5
        enlarged = np.clip(np.round(gray), 0, 255).astype(np.uint8)
    drawn = np.zeros((CANVAS, CANVAS), np.uint8)
    top, left = rng.integers(0, CANVAS - side + 1, 2)
    drawn[top : top + side, left : left + side] = enlarged
    return drawn


def classify(lite: LiteModel, images: np.ndarray) -> np.ndarray:
    """Returns the file's class for each image; images have shape (samples, 28, 28), uint8."""
    x = images[..., np.newaxis].astype(np.float32) / np.float32(255)
    return lite.predict(x, dequantize=False, progress=True).argmax(axis=-1)


def find_extent(image: np.ndarray) -> tuple[int, ...]:
    """Returns the first and last row and column with ink."""
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    ends = ((line[0], line[-1]) if len(line) else (-1, -1) for line in (rows, columns))
    return tuple(int(end) for pair in ends for end in pair)


def compute_share(hits: Any) -> float:
    """Returns the fraction that is true."""
    return float(np.mean(hits))


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the results as a table."""
    lines = [
        f"`{result['file']}` ({result['bytes']:,} bytes) reads {result['accuracy']:.2%} of "
        f"{result['samples']:,} MNIST test images. Drawn on a canvas of {CANVAS} × {CANVAS} pixels "
        "and read through the app's preprocessing:",
        "",
        "| drawing | accuracy | against the images' own | same answer | same place | same bytes "
        "| mean difference, gray levels |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for drawing in result["drawings"]:
        points = 100 * (drawing["accuracy"] - result["accuracy"])
        lines.append(
            f"| {drawing['way']} | {drawing['accuracy']:.2%} | {points:+.2f} points "
            f"| {drawing['same_answer']:.2%} | {drawing['same_place']:.1%} "
            f"| {drawing['same_bytes']:.1%} | {drawing['mean_difference']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
