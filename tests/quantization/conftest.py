"""A trained digits classifier, made once."""

import numpy as np
import pytest
import tf_keras as keras

L = keras.layers


@pytest.fixture(scope="session")
def digits():
    """Images (n, 8, 8, 1) from 0 to 1 and classes: 1,400 to train on, 397 to test on."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images[..., None] / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], bunch.target[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


@pytest.fixture(scope="session")
def trained(digits):
    """Convolutions with batch normalization, depthwise, ending in logits."""
    x, y, _, _ = digits
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), name="image")
    h = L.Conv2D(12, 3, padding="same", use_bias=False, name="conv")(inputs)
    h = L.BatchNormalization(name="norm")(h)
    h = L.ReLU(name="relu")(h)
    h = L.DepthwiseConv2D(3, strides=2, activation="relu", name="depthwise")(h)
    h = L.Flatten(name="flat")(h)
    model = keras.Model(inputs, L.Dense(10, name="logits")(h), name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x, y, batch_size=64, epochs=8, verbose=0)
    return model
