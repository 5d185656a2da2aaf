"""Files as people have them pass every check, and compute what the model computed."""

import itertools
import json
import zipfile

import h5py
import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from crafted_files import save

from kdtflite.models import load_model
from kdtflite.models.trust import allowed_operations, allowed_operators

L, L3 = keras.layers, keras3.layers
RNG = np.random.default_rng(0)


def _operations():
    """Functions of TensorFlow and Keras on tensors, wrappers, cells, and a compiled inner model."""
    x = keras.Input((8, 8, 3))
    y = L.Rescaling(1 / 255.0)(x)
    y = L.Conv2D(4, 3, activation=tf.nn.relu6, kernel_regularizer=keras.regularizers.L1L2(0.1))(y)
    y = L.Conv2D(
        4, 1, activation="swish", kernel_initializer="he_normal", bias_constraint="max_norm"
    )(y)
    y = y * tf.nn.relu6(y + 3.0) / 6.0 - 2.0**y
    y = tf.concat([tf.image.resize(y, (4, 4))[:, 1:3], tf.zeros_like(y)[:, :2, :4]], -1)
    y = keras.backend.mean(keras.activations.gelu(y), axis=1)
    y = L.Bidirectional(L.LSTM(3, return_sequences=True))(y)
    y = L.TimeDistributed(L.Dense(3, activation=L.LeakyReLU(0.1)))(y)
    y = L.RNN([L.GRUCell(2), L.LSTMCell(2)])(y)
    inner = keras.Sequential([keras.Input((2,)), L.Dense(4), L.PReLU(), L.BatchNormalization()])
    inner.compile("adam", keras.losses.Huber(), ["accuracy", keras.metrics.AUC()])
    y = tf.expand_dims(inner(y), 2) * tf.expand_dims(tf.cast(y, tf.float32), 1)
    model = keras.Model(x, y)
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.MeanSquaredError(),
        ["mae"],
        weighted_metrics=[keras.metrics.MeanSquaredError()],
    )
    return model


def _attention():
    x = keras.Input((6,), dtype="int32")
    y = L.Embedding(5, 8, mask_zero=True)(x)
    y = L.LayerNormalization()(y + L.MultiHeadAttention(2, 4)(y, y))
    y = L.Normalization(mean=[0.5] * 8, variance=[2.0] * 8)(y)
    return keras.Model(x, L.GlobalAveragePooling1D()(L.Dropout(0.1)(y)))


def _lookup():
    x = keras.Input((2,), dtype="int64")
    return keras.Model(x, L.Embedding(9, 2)(L.IntegerLookup(vocabulary=[3, 5, 7])(x)))


def _mixed():
    policy = keras.mixed_precision.Policy("mixed_float16")
    return keras.Sequential([keras.Input((4,)), L.Dense(3, dtype=policy, activation="softmax")])


def _mobile():
    return keras.applications.MobileNetV3Small((32, 32, 3), weights=None, classes=3)


@pytest.mark.parametrize(
    ("make", "ending"),
    [
        *itertools.product([_operations, _attention, _lookup, _mixed], [".keras", ".h5", ""]),
        # As a SavedModel it takes a minute: 200 layers are saved as functions.
        *itertools.product([_mobile], [".keras", ".h5"]),
    ],
)
def test_models_of_keras_2_load(tmp_path, make, ending):
    model = make()
    x = RNG.integers(0, 5, (2, *model.input_shape[1:])).astype(model.input.dtype.name)
    loaded = load_model(save(model, tmp_path / f"model{ending}"))
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def _operations3():
    ops = keras3.ops
    x = keras3.Input((8, 8, 3))
    y = L3.Conv2D(4, 3, activation="silu", kernel_regularizer="l2", padding="same")(x)
    y = ops.relu6(y) + ops.mean(y, axis=1, keepdims=True) * 2 - y[:, :1]
    y = ops.concatenate([y, ops.abs(y)], -1)
    y = L3.GlobalAveragePooling2D()(L3.Dense(4, activation="leaky_relu")(y))
    inner = keras3.Sequential([keras3.Input((4,)), L3.Dense(3), L3.BatchNormalization()])
    inner.compile("adam", "mse")
    y = L3.LSTM(3)(L3.Reshape((3, 1))(inner(L3.Dropout(0.1, seed=1)(y))))
    model = keras3.Model(x, y)
    rate = keras3.optimizers.schedules.CosineDecay(0.1, 3)
    model.compile(keras3.optimizers.AdamW(rate), keras3.losses.Huber(), [keras3.metrics.AUC()])
    return model


def _attention3():
    x = keras3.Input((6,), dtype="int32")
    y = L3.Embedding(5, 8)(x)
    y = L3.LayerNormalization()(L3.MultiHeadAttention(2, 4)(y, y))
    return keras3.Model(x, L3.Bidirectional(L3.GRU(3))(y))


# Keras 3 cannot load operations from .h5 itself ("Unknown layer: 'Mean'").
@pytest.mark.parametrize(
    ("make", "ending"), [(_operations3, ".keras"), (_attention3, ".keras"), (_attention3, ".h5")]
)
def test_models_of_keras_3_load(tmp_path, make, ending):
    model = make()
    x = RNG.integers(0, 5, (2, *model.input_shape[1:])).astype(model.input.dtype)
    loaded = load_model(save(model, tmp_path / f"model{ending}"))
    np.testing.assert_allclose(loaded(x), np.asarray(model(x)), rtol=1e-4, atol=1e-5)


def test_a_file_that_was_packed_again_loads(tmp_path):
    path = save(_operations(), tmp_path / "model.keras")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert load_model(path).count_params() == _operations().count_params()


def test_a_config_of_keras_2_point_2_loads(tmp_path):
    """The lists of layers without a name, and initializers by their former settings."""
    path = save(keras.Sequential([keras.Input((4,)), L.Dense(3, name="d")]), tmp_path / "old.h5")
    initializer = {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None}
    dense = {
        **{"name": "d", "trainable": True, "units": 3, "activation": "linear", "use_bias": True},
        **{"kernel_initializer": {"class_name": "VarianceScaling", "config": initializer}},
        **{"bias_initializer": {"class_name": "Zeros", "config": {}}, "kernel_regularizer": None},
        "batch_input_shape": [None, 4],
    }
    with h5py.File(path, "a") as file:
        config = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": dense}]}
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.0.6"
    assert load_model(path).output_shape == (None, 3)


def test_the_lists_name_only_what_tensorflow_has():
    missing = [name for name in allowed_operators.OPERATORS if not hasattr(tf.raw_ops, name)]
    assert missing == []
    for name in allowed_operations.OPERATIONS:
        assert name.split(".")[-1].replace("_", "").isalnum()
        assert not {"io", "raw_ops", "data", "py_function"} & set(name.split("."))
    reaching = {"ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "PrintV2", "MatchingFiles"}
    reaching |= {"InitializeTableFromTextFileV2", "ImmutableConst", "FixedUnigramCandidateSampler"}
    reaching |= {"SaveV2", "RestoreV2", "TFRecordDatasetV2", "DecodeProtoV2", "Abort", "RemoteCall"}
    assert not reaching & allowed_operators.OPERATORS
