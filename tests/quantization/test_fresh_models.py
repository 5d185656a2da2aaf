"""Untrained models train quantization-aware as they train in float.

Whole networks of tf_keras.applications are in benchmarks/coverage.py.
"""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.applications import EfficientNetB0

from kdtflite.quantization import quantize_aware

L = keras.layers
CLASSES = 4


def add_inverted_residual(x, channels, *, stride=1):
    """Expansion, depthwise convolution, squeeze and excitation, projection, as in EfficientNet."""
    width = 4 * x.shape[-1]
    h = L.Activation("swish")(L.BatchNormalization()(L.Conv2D(width, 1, use_bias=False)(x)))
    h = L.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(h)
    h = L.Activation("swish")(L.BatchNormalization()(h))
    gate = L.Conv2D(4, 1, activation="swish")(L.GlobalAveragePooling2D(keepdims=True)(h))
    h = L.Multiply()([h, L.Conv2D(width, 1, activation="sigmoid")(gate)])
    h = L.BatchNormalization()(L.Conv2D(channels, 1, use_bias=False)(h))
    return L.Add()([x, h]) if stride == 1 and channels == x.shape[-1] else h


def build_mobile():
    inputs = keras.Input((16, 16, 3))
    h = L.BatchNormalization()(L.Conv2D(8, 3, strides=2, use_bias=False)(inputs))
    h = L.Activation("swish")(h)
    for channels, stride in ((8, 1), (12, 2), (12, 1), (12, 1)):
        h = add_inverted_residual(h, channels, stride=stride)
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(h)))


def build_plain_without_scaling():
    """Each convolution triples its input: without statistics, activations grow by 3⁸."""
    inputs = keras.Input((16, 16, 3))
    h = inputs
    for i in range(8):
        kernel = keras.initializers.VarianceScaling(9.0, seed=i)
        h = L.Conv2D(8, 3, padding="same", use_bias=False, kernel_initializer=kernel)(h)
        h = L.ReLU()(L.BatchNormalization()(h))
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(h)))


def build_unet():
    inputs = keras.Input((16, 16, 3))
    skips, h = [], inputs
    for channels in (6, 8):
        h = L.ReLU()(L.BatchNormalization()(L.Conv2D(channels, 3, padding="same")(h)))
        skips.append(h)
        h = L.MaxPooling2D()(h)
    for skip in reversed(skips):
        h = L.Concatenate()([L.UpSampling2D()(h), skip])
        h = L.ReLU()(L.BatchNormalization()(L.Conv2D(skip.shape[-1], 3, padding="same")(h)))
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(h)))


def build_tcn():
    inputs = keras.Input((16, 6))
    h = L.Conv1D(8, 1)(inputs)
    for dilation in (1, 2, 4):
        inner = L.Conv1D(8, 3, padding="causal", dilation_rate=dilation)(h)
        inner = L.ReLU()(L.BatchNormalization()(inner))
        h = L.Add()([h, L.Conv1D(8, 1)(inner)])
    return keras.Model(inputs, L.Dense(CLASSES)(h[:, -1]))


def build_transformer():
    inputs = keras.Input((16, 6))
    h = L.Dense(8)(inputs)
    normal = L.LayerNormalization()(h)
    h = L.Add()([h, L.MultiHeadAttention(2, 4)(normal, normal)])
    inner = L.Dense(16, activation="gelu")(L.LayerNormalization()(h))
    h = L.Add()([h, L.Dense(8)(inner)])
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(h)))


def build_lstm():
    inputs = keras.Input((5, 6))
    return keras.Model(inputs, L.Dense(CLASSES)(L.LSTM(8)(inputs)))


def build_gru():
    inputs = keras.Input((5, 6))
    return keras.Model(inputs, L.Dense(CLASSES)(L.GRU(8)(inputs)))


def make_batch(model, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(32) % CLASSES
    noise = random.normal(size=(32, *model.input_shape[1:]))
    ramp = np.linspace(-1, 1, model.input_shape[1]).reshape(-1, *[1] * (noise.ndim - 2))
    shift = np.stack([np.cos((c + 1) * 2 * ramp) for c in range(CLASSES)])[y]
    return (0.3 * noise + shift).astype(np.float32), y


def train(model, x, y, steps, rate=0.02):
    """Returns the mean loss of the first and of the last four steps of plain SGD."""
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    order = [model.train_on_batch(x[i::2], y[i::2]) for _ in range(steps) for i in range(2)]
    return float(np.mean(order[:4])), float(np.mean(order[-4:]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        build_gru,
        build_lstm,
        build_mobile,
        build_plain_without_scaling,
        build_tcn,
        build_transformer,
        build_unet,
    ],
)
def test_an_untrained_model_learns_as_it_does_in_float(build):
    keras.utils.set_random_seed(0)
    model = build()
    x, y = make_batch(model)
    aware = quantize_aware(model, x)
    first, last = train(model, x, y, 10)
    aware_first, aware_last = train(aware, x, y, 10)
    assert [w.name for w in aware.weights if not np.isfinite(w.numpy()).all()] == []
    assert last < first  # or the comparison says nothing
    assert aware_last < aware_first
    assert first - last < 2 * (aware_first - aware_last) + 0.1


@pytest.mark.slow
def test_the_first_gradients_of_an_untrained_efficientnet_are_like_those_of_the_float_model():
    keras.utils.set_random_seed(0)
    model = EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=CLASSES)
    x = np.random.default_rng(0).uniform(0, 255, (16, 32, 32, 3)).astype(np.float32)
    y = np.arange(16) % CLASSES
    largest = []
    for network in (model, quantize_aware(model, x)):
        with tf.GradientTape() as tape:
            outputs = network(x[:8], training=True)
            loss = keras.losses.sparse_categorical_crossentropy(y[:8], outputs)
        gradients = tape.gradient(loss, network.trainable_variables)
        largest.append(max(float(tf.reduce_max(tf.abs(g))) for g in gradients if g is not None))
    assert np.isfinite(largest).all()
    assert largest[1] < 20 * largest[0]
