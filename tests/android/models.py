"""Writes files for the app's code to run, with Python's answers.

    python tests/android/models.py CASES [REFERENCE_MODELS]

fills the folder CASES:

- NAME.tflite with NAME.json (golden vectors) and NAME.metadata.json: one file of
  `kdtflite.convert` per target, the models that come with the app, and the files of
  REFERENCE_MODELS;
- REASON.refused.tflite: files that the app must refuse, named after the reason.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

import kdtflite
from kdtflite.lite.model import LiteModel

__all__ = ["write"]

LABELS = ["cat", "dög", "crane, common", "bee"]
BUNDLED = Path(__file__).resolve().parents[2] / "android_demo" / "models"


def write(folder: Path, references: Path | None = None, *, samples: int = 128) -> None:
    """Writes all cases into a new folder, with `samples` golden samples per file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lite in convert_targets().items():
        lite.save(folder / f"{name}.tflite", overwrite=True)
    for source in [*BUNDLED.glob("*.tflite"), *(references.glob("*.tflite") if references else ())]:
        shutil.copyfile(source, folder / source.name)
    for path in sorted(folder.glob("*.tflite")):
        describe(path, samples)
    for reason, content in make_refused().items():
        (folder / f"{reason}.refused.tflite").write_bytes(content)


def describe(path: Path, samples: int) -> None:
    """Writes a file's golden vectors and its metadata next to it."""
    lite = LiteModel.load(path)
    golden = kdtflite.golden_vectors(lite, samples=samples, name=path.name)
    golden.save(path.with_suffix(".json"), overwrite=True)
    metadata = lite.metadata
    first = metadata.inputs[0] if metadata and metadata.inputs else None
    labels = metadata.outputs[0].labels if metadata and metadata.outputs else ()
    text = json.dumps(
        {
            "present": metadata is not None,
            "name": metadata.name if metadata else "",
            "description": metadata.description if metadata else "",
            "author": metadata.author if metadata else "",
            "license": metadata.license if metadata else "",
            "mean": first.mean if first else (),
            "std": first.std if first else (),
            "labels": labels,
        }
    )
    path.with_suffix(".metadata.json").write_text(text, encoding="utf-8")


def convert_targets() -> dict[str, LiteModel]:
    """Converts a small model once per target."""
    tf_keras.utils.set_random_seed(7)
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((12, 12, 3), name="image"),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, strides=2, padding="same"),
            layers.Conv2D(160, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(len(LABELS)),
        ]
    )
    rng = np.random.default_rng(7)
    model.layers[1].set_weights([rng.uniform(0.5, 1.5, 8) for _ in range(4)])
    data = rng.uniform(0, 1, (64, 12, 12, 3)).astype(np.float32)
    about = {"labels": LABELS, "normalization": (0, 255), "description": "Recognizes four animals."}
    targets: dict[str, dict] = {
        "int8": {**about, "author": "kdtflite", "license": "Apache-2.0"},
        "uint8": {"target": "int8", "io_dtype": "uint8", **about},
        "int8x4": {"target": "int8x4"},
        "int16x8": {"target": "int16x8"},
        "float16": {"target": "float16", **about},
        "dynamic": {"target": "dynamic"},
        "float32": {"target": "float32"},
    }
    return {
        name: kdtflite.convert(model, representative_data=data, **options)
        for name, options in targets.items()
    }


def make_refused() -> dict[str, bytes]:
    """Makes one file per reason for which the app refuses files."""
    image = tf.TensorSpec((1, 4, 4, 1), tf.float32, name="image")

    def mean(x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(x, axis=(1, 2))

    return {
        # No runtime has this operation: it becomes a custom operator, which is missing.
        "not_runnable": convert_function(lambda x: tf.math.igamma(mean(x) + 1.0, mean(x)), image),
        "dtype": convert_function(
            lambda x: mean(tf.cast(x, tf.float32)), tf.TensorSpec((1, 4, 4, 1), tf.int64, "image")
        ),
        "inputs": convert_function(lambda x, y: mean(x + y), image, image),
        "shape": convert_function(lambda x: x * 2.0, tf.TensorSpec((1, 16), tf.float32, "image")),
        "output": convert_function(lambda x: x * 2.0, image),
    }


def convert_function(function: Callable[..., tf.Tensor], *specs: tf.TensorSpec) -> bytes:
    """Converts a function without quantization."""
    traced = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    converter.allow_custom_ops = True
    return bytes(converter.convert())


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python tests/android/models.py CASES [REFERENCE_MODELS]")
    write(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
