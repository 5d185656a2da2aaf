"""A small data set and models that the pipeline's tests train in seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import tf_keras as keras

import kdtflite.pipeline.training as training
from kdtflite.data.splits import Dataset, Split

L = keras.layers


def blobs(samples: int, seed: int, noise: float = 0.0) -> Split:
    """Images of 6 × 6 with one of three corners bright; some labels drawn at random."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, samples)
    x = rng.uniform(0, 0.45, (samples, 6, 6, 1))
    for place, (row, column) in enumerate([(0, 0), (0, 3), (3, 0)]):
        x[y == place, row : row + 3, column : column + 3] += 0.2
    wrong = rng.random(samples) < noise
    return Split(x.astype(np.float32), np.where(wrong, rng.integers(0, 3, samples), y))


def dataset(*, samples: int = 96, noise: float = 0.0) -> Dataset:
    return Dataset(
        "corners", blobs(samples, 1, noise), blobs(90, 2), blobs(60, 3), ("a", "b", "c"), (0.0, 1.0)
    )


def student(seed: int = 3) -> keras.Model:
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(4, 3, name="conv")(x)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="relu")(x)
    outputs = L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="student")


def teacher(*, knows: bool = True) -> keras.Model:
    """Compares the corners: right but for noise, or with every class taken for another."""
    inputs = keras.Input((6, 6, 1))
    x = L.AveragePooling2D(3, name="means")(inputs)
    layer = L.Dense(3, name="logits")
    model = keras.Model(inputs, layer(L.Flatten()(x)), name="teacher")
    kernel = 40 * np.eye(4, 3)
    layer.set_weights([kernel if knows else kernel[:, [1, 2, 0]], np.zeros(3)])
    return model


class Killed(BaseException):
    """Nothing catches it."""


@contextlib.contextmanager
def kill_after(epochs: int) -> Iterator[None]:
    """Ends the training in the block when the next epoch's checkpoint would be written."""
    real, left = training.write_json, [epochs]

    def write(*arguments, **named):
        if not left[0]:
            raise Killed
        left[0] -= 1
        real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_json", write)
        with pytest.raises(Killed):
            yield
