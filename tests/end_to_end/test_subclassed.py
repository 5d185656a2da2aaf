"""A subclassed model of either Keras, quantized aware and converted to a proven int8 file."""

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

import kdtflite


def _digits_model(package):
    layers = package.layers

    class Block(layers.Layer):
        def __init__(self, filters, **kwargs):
            super().__init__(**kwargs)
            self.conv = layers.Conv2D(filters, 3, padding="same", name="conv")
            self.norm = layers.BatchNormalization(name="norm")

        def call(self, x, training=None):
            return x + layers.ReLU(name="relu")(self.norm(self.conv(x), training=training))

    class Digits(package.Model):
        def __init__(self):
            super().__init__(name="digits")
            self.stem = layers.Conv2D(8, 3, strides=2, activation="relu", name="stem")
            self.blocks = [Block(8, name="one"), Block(8, name="two")]
            self.pool = layers.GlobalAveragePooling2D(name="pool")
            self.head = layers.Dense(10, name="head")

        def call(self, x, training=None):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x, training=training)
            return self.head(self.pool(x))

    package.utils.set_random_seed(0)
    return Digits()


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images[..., None] / 16).astype("float32"), bunch.target


@pytest.mark.parametrize("package", [keras, keras3])
def test_a_subclassed_model_becomes_a_proven_int8_file(package, digits):
    x, y = digits
    model = _digits_model(package)
    loss = package.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(package.optimizers.Adam(0.01), loss)
    model.fit(x[:1400], y[:1400], batch_size=64, epochs=10, verbose=0)
    expected = np.array(model(x[1400:], training=False)).argmax(-1)
    assert (expected == y[1400:]).mean() > 0.5  # it has learned as much as ten epochs allow

    student = kdtflite.quantize_aware(model, x[:300])
    assert {row.how for row in student.quantization.layers} <= {"trained", "folded"}
    lite = kdtflite.convert(
        student, representative_data=x[:300], target="int8"
    )  # proven, or raised
    result = kdtflite.evaluate(lite, (x[1400:], expected))
    assert result.accuracy > 0.95
    # The float model calibrated alone goes the same way in.
    plain = kdtflite.convert(model, representative_data=x[:300], target="int8")
    assert kdtflite.evaluate(plain, (x[1400:], expected)).accuracy > 0.95
