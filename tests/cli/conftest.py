"""Small models, their files and their data, made once for all tests of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.keras, model.tflite (int8), float.tflite, data.npz and bytes.npz."""
    import kdtflite

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tf_keras as keras

    folder = tmp_path_factory.mktemp("workshop")
    # The class is where the light is: one weight per class and pixel, so that answers are known.
    model = keras.Sequential(
        [
            keras.Input((2, 2, 1), name="image"),
            keras.layers.Flatten(),
            keras.layers.Dense(4, name="scores", kernel_initializer="identity"),
        ]
    )
    model.save(folder / "model.keras")
    x = np.random.default_rng(0).random((64, 2, 2, 1)).astype(np.float32)
    x[np.arange(64), np.arange(64) % 4 // 2, np.arange(64) % 2] = 1.0
    y = np.arange(64) % 4
    x = np.where(np.eye(4)[y].reshape(64, 2, 2, 1) > 0, x, x * 0.5).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "bytes.npz", x=(x[..., 0] * 255).astype(np.uint8), y=y)
    # A quarter of the labels are wrong: accuracy 0.75.
    np.savez(folder / "wrong.npz", x=x, y=np.where(y == 3, 0, y))
    for name, target in (("model", "int8"), ("float", "float32")):
        lite = kdtflite.convert(model, x if target == "int8" else None, target, progress=False)
        lite.save(folder / f"{name}.tflite")
    return folder


def invoke(*arguments: str | Path) -> Result:
    """Runs the command line in this process."""
    from kdtflite.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(name="invoke")
def invoke_fixture() -> object:
    return invoke
