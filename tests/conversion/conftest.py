"""Models and files that the tests of conversion share: a conversion takes seconds."""

import numpy as np
import pytest
import tf_keras as keras

from kdtflite.conversion.convert import convert
from kdtflite.quantization import quantize_aware

L = keras.layers


@pytest.fixture(scope="session")
def images():
    """Smooth random images (300, 8, 8, 1) from 0 to 1."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 1, (300, 4, 4, 1))
    return coarse.repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)


@pytest.fixture(scope="session")
def student(images):
    """A quantization-aware student with a convolution, a depthwise one and logits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), name="image")
    h = L.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    h = L.BatchNormalization(name="norm")(h)
    h = L.ReLU(name="relu")(h)
    h = L.DepthwiseConv2D(3, activation="relu", name="depthwise")(h)
    h = L.Flatten(name="flat")(h)
    model = keras.Model(inputs, L.Dense(5, name="logits")(h), name="student")
    return quantize_aware(model, images)


@pytest.fixture(scope="session")
def int8_file(student, images):
    """The student's int8 file."""
    return convert(student, images, progress=False)
