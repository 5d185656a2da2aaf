"""A small Keras classifier and its files, made once a test process."""

from __future__ import annotations

import numpy as np
import pytest

from kdtflite.litemodel import LiteModel


def converted(model, data=None):
    """Returns the file of a Keras model: int8 where there are data, else float."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if data is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[np.newaxis]] for row in data)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return LiteModel(converter.convert())


@pytest.fixture(scope="session")
def convert_plainly():
    return converted


@pytest.fixture(scope="session")
def samples():
    return np.random.default_rng(0).random((64, 8, 8, 1), np.float32)


@pytest.fixture(scope="session")
def student():
    """A convolutional classifier of 8 by 8 images into 4 classes, ending in logits."""
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers

    # The converter leaves out a bias of zeros and stores equal ones once.
    def bias(seed):
        return {"bias_initializer": keras.initializers.RandomUniform(0.01, 0.1, seed=seed)}

    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu", **bias(1)),
            layers.DepthwiseConv2D(3, **bias(2)),
            layers.Flatten(),
            layers.Dense(4, **bias(3)),
        ],
        name="student",
    )


@pytest.fixture(scope="session")
def float_file(student):
    return converted(student)


@pytest.fixture(scope="session")
def int8_file(student, samples):
    return converted(student, samples)
