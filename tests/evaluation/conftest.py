"""A small Keras classifier and its files, made once a test process."""

from __future__ import annotations

import numpy as np
import pytest

from kdtflite.lite.model import LiteModel


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


@pytest.fixture(scope="session")
def trained(samples):
    """A float classifier with batch normalization, whose statistics are those of `samples`."""
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.5, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Dropout(0.2, name="drop")(x)
    x = layers.Flatten(name="flat")(x)
    model = keras.Model(inputs, layers.Dense(4, name="logits")(x), name="digits")
    model.compile("adam", "mse")
    model.fit(samples, np.random.default_rng(1).normal(size=(64, 4)), epochs=4, verbose=0)
    return model


@pytest.fixture(scope="session")
def aware(trained, samples):
    """`trained`, quantization-aware."""
    import kdtflite

    return kdtflite.quantize_aware(trained, samples)


@pytest.fixture(scope="session")
def aware_file(aware, samples):
    """The int8 file of `aware`."""
    import kdtflite

    return kdtflite.convert(aware, samples, progress=False)


@pytest.fixture(scope="session")
def sequence_student():
    """A quantization-aware student of sequences, whose layers were taken apart; its file; samples.

    A nested model is in it, too.
    """
    import tf_keras as keras

    import kdtflite

    keras.utils.set_random_seed(2)
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((16, 8)), layers.Conv1D(8, 3, activation="relu", name="deep")], name="inner"
    )
    inputs = keras.Input((16, 3), name="wave")
    x = layers.Conv1D(8, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = inner(x)
    x = layers.LayerNormalization(name="layer_norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x), name="waves")
    samples = np.random.default_rng(0).normal(size=(32, 16, 3)).astype(np.float32)
    student = kdtflite.quantize_aware(model, samples)
    return student, kdtflite.convert(student, samples, progress=False), samples, model
