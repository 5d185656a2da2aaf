"""The models of benchmarks/coverage.py: whole networks, and one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

__all__ = ["Case", "cases"]

L = keras.layers
Case = Callable[[], Any]
CLASSES = 10

# The smallest input, in pixels, that each family takes.
_APPLICATIONS = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "ResNetRS50": 32,
    "VGG16": 32,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
    "Xception": 71,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
    "RegNetX002": 32,
    "RegNetY002": 32,
}


def cases() -> dict[str, Case]:
    """Returns what builds each model, by the case's name."""
    found: dict[str, Case] = {}
    for name, size in _APPLICATIONS.items():
        found[f"tf_keras.applications.{name}"] = _application("tf_keras", name, size)
    for name, size in _APPLICATIONS.items():
        if name not in ("RegNetX002", "RegNetY002", "ResNetRS50"):  # Keras 3 has them no more
            found[f"keras.applications.{name}"] = _application("keras", name, size)
    for name, build in _LAYERS.items():
        found[f"layer.{name}"] = build
    found.update(_SMALL)
    return found


def _application(package: str, name: str, size: int) -> Case:
    def build() -> Any:
        if package == "keras":
            import keras as keras3

            source: Any = keras3
        else:
            source = keras
        options: dict[str, Any] = {"classifier_activation": None}
        if name == "NASNetMobile":
            options = {}  # it always ends in softmax
        model = getattr(source.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=CLASSES, **options
        )
        _settle(model)
        return model

    return build


def _settle(model: Any) -> None:
    """Gives normalizations statistics of their own, so that a wrong rewrite shows."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        path = getattr(weight, "path", weight.name)
        if "variance" in path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
        elif "moving_mean" in path or "beta" in path:
            weight.assign(random.normal(0.0, 0.1, weight.shape))
        elif "gamma" in path and "layer_scale" not in path:
            weight.assign(random.uniform(0.8, 1.2, weight.shape))


def _single(layer: Callable[[], Any], *shapes: tuple[int, ...], dtype: str = "float32") -> Case:
    """A model of one layer, with a dense layer that makes classes of what it gives."""

    def build() -> keras.Model:
        inputs = [
            keras.Input(shape, dtype=dtype, name=f"input_{i}") for i, shape in enumerate(shapes)
        ]
        x = layer()(inputs if len(inputs) > 1 else inputs[0])
        if len(x.shape) > 2:
            x = L.Flatten()(x)
        model = keras.Model(inputs, L.Dense(CLASSES, name="logits")(x), name="one_layer")
        _settle(model)
        return model

    return build


def _function(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Case:
    return _single(lambda: lambda x: function(*x) if isinstance(x, list) else function(x), *shapes)


IMAGE, SEQUENCE, VECTOR = (8, 8, 4), (12, 6), (16,)

_ACTIVATIONS = [
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "softmax",
    "softplus",
    "softsign",
    "swish",
    "tanh",
]

_LAYERS: dict[str, Case] = {
    "Conv1D": _single(lambda: L.Conv1D(8, 3), SEQUENCE),
    "Conv1D causal, dilated": _single(
        lambda: L.Conv1D(8, 3, padding="causal", dilation_rate=2), SEQUENCE
    ),
    "Conv1D strided": _single(lambda: L.Conv1D(8, 3, strides=2, padding="same"), SEQUENCE),
    "Conv1DTranspose": _single(lambda: L.Conv1DTranspose(8, 3, strides=2), SEQUENCE),
    "Conv2D": _single(lambda: L.Conv2D(8, 3), IMAGE),
    "Conv2D dilated": _single(lambda: L.Conv2D(8, 3, dilation_rate=2), IMAGE),
    "Conv2D grouped": _single(lambda: L.Conv2D(8, 3, groups=2), IMAGE),
    "Conv2DTranspose": _single(lambda: L.Conv2DTranspose(8, 3, strides=2), IMAGE),
    "DepthwiseConv1D": _single(lambda: L.DepthwiseConv1D(3), SEQUENCE),
    "DepthwiseConv2D": _single(lambda: L.DepthwiseConv2D(3), IMAGE),
    "DepthwiseConv2D, multiplier 2": _single(
        lambda: L.DepthwiseConv2D(3, depth_multiplier=2), IMAGE
    ),
    "SeparableConv1D": _single(lambda: L.SeparableConv1D(8, 3), SEQUENCE),
    "SeparableConv2D": _single(lambda: L.SeparableConv2D(8, 3), IMAGE),
    "Dense": _single(lambda: L.Dense(8), VECTOR),
    "Dense on sequences": _single(lambda: L.Dense(8), SEQUENCE),
    "Dense on images": _single(lambda: L.Dense(8), IMAGE),
    "EinsumDense": _single(lambda: L.EinsumDense("abc,cd->abd", (None, 8)), SEQUENCE),
    "Embedding": _single(lambda: L.Embedding(20, 8), (12,), dtype="int32"),
    "LSTM": _single(lambda: L.LSTM(8), SEQUENCE),
    "LSTM, sequences": _single(lambda: L.LSTM(8, return_sequences=True), SEQUENCE),
    "GRU": _single(lambda: L.GRU(8), SEQUENCE),
    "GRU, sequences": _single(lambda: L.GRU(8, return_sequences=True), SEQUENCE),
    "SimpleRNN": _single(lambda: L.SimpleRNN(8), SEQUENCE),
    "Bidirectional LSTM": _single(lambda: L.Bidirectional(L.LSTM(8)), SEQUENCE),
    "TimeDistributed Dense": _single(lambda: L.TimeDistributed(L.Dense(8)), SEQUENCE),
    "TimeDistributed Conv2D": _single(lambda: L.TimeDistributed(L.Conv2D(4, 3)), (3, *IMAGE)),
    "MultiHeadAttention": _function(lambda x: L.MultiHeadAttention(2, 4)(x, x), SEQUENCE),
    "MultiHeadAttention, causal": _function(
        lambda x: L.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True), SEQUENCE
    ),
    "MultiHeadAttention across": _function(
        lambda x, y: L.MultiHeadAttention(2, 4)(x, y), SEQUENCE, (5, 6)
    ),
    "Attention": _function(lambda x: L.Attention()([x, x]), SEQUENCE),
    "AdditiveAttention": _function(lambda x: L.AdditiveAttention()([x, x]), SEQUENCE),
    "BatchNormalization": _single(lambda: L.BatchNormalization(), IMAGE),
    "BatchNormalization of vectors": _single(lambda: L.BatchNormalization(), VECTOR),
    "BatchNormalization of sequences": _single(lambda: L.BatchNormalization(), SEQUENCE),
    "LayerNormalization": _single(lambda: L.LayerNormalization(), SEQUENCE),
    "LayerNormalization of images": _single(lambda: L.LayerNormalization(), IMAGE),
    "GroupNormalization": _single(lambda: L.GroupNormalization(2), IMAGE),
    "UnitNormalization": _single(lambda: L.UnitNormalization(), VECTOR),
    "Rescaling": _single(lambda: L.Rescaling(1 / 127.5, -1.0), IMAGE),
    "Normalization": _single(
        lambda: L.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[0.5, 1, 2, 3]), IMAGE
    ),
    "MaxPooling1D": _single(lambda: L.MaxPooling1D(2), SEQUENCE),
    "MaxPooling2D": _single(lambda: L.MaxPooling2D(2), IMAGE),
    "AveragePooling1D": _single(lambda: L.AveragePooling1D(2), SEQUENCE),
    "AveragePooling2D": _single(lambda: L.AveragePooling2D(2), IMAGE),
    "GlobalMaxPooling1D": _single(lambda: L.GlobalMaxPooling1D(), SEQUENCE),
    "GlobalMaxPooling2D": _single(lambda: L.GlobalMaxPooling2D(), IMAGE),
    "GlobalAveragePooling1D": _single(lambda: L.GlobalAveragePooling1D(), SEQUENCE),
    "GlobalAveragePooling2D": _single(lambda: L.GlobalAveragePooling2D(), IMAGE),
    "UpSampling1D": _single(lambda: L.UpSampling1D(2), SEQUENCE),
    "UpSampling2D": _single(lambda: L.UpSampling2D(2), IMAGE),
    "UpSampling2D bilinear": _single(lambda: L.UpSampling2D(2, interpolation="bilinear"), IMAGE),
    "ZeroPadding1D": _single(lambda: L.ZeroPadding1D(2), SEQUENCE),
    "ZeroPadding2D": _single(lambda: L.ZeroPadding2D(2), IMAGE),
    "Cropping1D": _single(lambda: L.Cropping1D(2), SEQUENCE),
    "Cropping2D": _single(lambda: L.Cropping2D(2), IMAGE),
    "Resizing": _single(lambda: L.Resizing(6, 6), IMAGE),
    "Flatten": _single(lambda: L.Flatten(), IMAGE),
    "Reshape": _single(lambda: L.Reshape((16, 16)), IMAGE),
    "Permute": _single(lambda: L.Permute((2, 1, 3)), IMAGE),
    "RepeatVector": _single(lambda: L.RepeatVector(3), VECTOR),
    "Add": _single(lambda: L.Add(), IMAGE, IMAGE),
    "Subtract": _single(lambda: L.Subtract(), IMAGE, IMAGE),
    "Multiply": _single(lambda: L.Multiply(), IMAGE, IMAGE),
    "Average": _single(lambda: L.Average(), IMAGE, IMAGE),
    "Maximum": _single(lambda: L.Maximum(), IMAGE, IMAGE),
    "Minimum": _single(lambda: L.Minimum(), IMAGE, IMAGE),
    "Concatenate": _single(lambda: L.Concatenate(), IMAGE, IMAGE),
    "Dot": _single(lambda: L.Dot(axes=(2, 2)), SEQUENCE, SEQUENCE),
    "Dropout": _single(lambda: L.Dropout(0.3), IMAGE),
    "SpatialDropout2D": _single(lambda: L.SpatialDropout2D(0.3), IMAGE),
    "GaussianNoise": _single(lambda: L.GaussianNoise(0.1), IMAGE),
    "RandomFlip": _single(lambda: L.RandomFlip(), IMAGE),
    "Masking": _single(lambda: L.Masking(), SEQUENCE),
    "ReLU": _single(lambda: L.ReLU(), IMAGE),
    "ReLU up to 1": _single(lambda: L.ReLU(max_value=1.0), IMAGE),
    "ReLU with a slope": _single(lambda: L.ReLU(negative_slope=0.1), IMAGE),
    "LeakyReLU": _single(lambda: L.LeakyReLU(), IMAGE),
    "PReLU": _single(lambda: L.PReLU(shared_axes=[1, 2]), IMAGE),
    "ELU": _single(lambda: L.ELU(), IMAGE),
    "ThresholdedReLU": _single(lambda: L.ThresholdedReLU(0.2), IMAGE),
    "Softmax": _single(lambda: L.Softmax(), IMAGE),
    **{
        f"Activation {name}": _single(lambda name=name: L.Activation(name), IMAGE)
        for name in _ACTIVATIONS
    },
    **{
        f"Conv2D with {name}": _single(lambda name=name: L.Conv2D(8, 3, activation=name), IMAGE)
        for name in ("elu", "gelu", "hard_sigmoid", "mish", "selu", "softplus", "swish")
    },
    "x plus y": _function(lambda x, y: x + y, IMAGE, IMAGE),
    "x * 2 + 1": _function(lambda x: x * 2.0 + 1.0, IMAGE),
    "x minus y": _function(lambda x, y: x - y, IMAGE, IMAGE),
    "x[:, 1:]": _function(lambda x: x[:, 1:], IMAGE),
    "tf.concat": _function(lambda x, y: tf.concat([x, y], axis=-1), IMAGE, IMAGE),
    "tf.matmul": _function(lambda x: tf.matmul(x, x, transpose_b=True), SEQUENCE),
    "tf.reduce_mean": _function(lambda x: tf.reduce_mean(x, axis=1), SEQUENCE),
    "tf.reduce_max": _function(lambda x: tf.reduce_max(x, axis=1), SEQUENCE),
    "tf.reshape, tf.transpose": _function(
        lambda x: tf.transpose(tf.reshape(x, (-1, 6, 12)), (0, 2, 1)), SEQUENCE
    ),
    "tf.clip_by_value": _function(lambda x: tf.clip_by_value(x, 0.0, 0.8), IMAGE),
    "x * relu6(x + 3) / 6": _function(lambda x: x * tf.nn.relu6(x + 3.0) / 6.0, IMAGE),
}


def _vision_transformer() -> keras.Model:
    image = keras.Input((16, 16, 3), name="image")
    x = L.Conv2D(32, 4, strides=4, name="patches")(image)
    x = L.Reshape((16, 32))(x)
    x = _Positions(name="positions")(x)
    for i in range(2):
        x = _block(x, 32, i)
    x = L.LayerNormalization(epsilon=1e-6)(x)
    return keras.Model(image, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(x)), name="vit")


@keras.utils.register_keras_serializable("coverage")
class _Positions(L.Layer):
    """Adds a learned vector to each position, as most code for transformers does."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight("table", shape=input_shape[1:], initializer="uniform")

    def call(self, x: Any) -> Any:
        return x + self.table


def _block(x: Any, width: int, i: int, mask: Any = None) -> Any:
    y = L.LayerNormalization(epsilon=1e-6, name=f"block{i}_norm1")(x)
    y = L.MultiHeadAttention(4, width // 4, name=f"block{i}_attention")(y, y)
    x = L.Add(name=f"block{i}_add1")([x, y])
    y = L.LayerNormalization(epsilon=1e-6, name=f"block{i}_norm2")(x)
    y = L.Dense(2 * width, activation="gelu", name=f"block{i}_wide")(y)
    y = L.Dense(width, name=f"block{i}_narrow")(y)
    return L.Add(name=f"block{i}_add2")([x, y])


def _text_classifier() -> keras.Model:
    tokens = keras.Input((24,), dtype="int32", name="tokens")
    places = tf.range(24)
    x = L.Embedding(20, 32, mask_zero=True, name="words")(tokens)
    x = L.Add()([x, L.Embedding(24, 32, name="places")(tf.zeros_like(tokens) + places)])
    x = L.LayerNormalization()(x)
    for i in range(2):
        x = _block(x, 32, i)
    return keras.Model(tokens, L.Dense(2)(x[:, 0]), name="bert_like")


def _audio_net() -> keras.Model:
    sound = keras.Input((512, 1), name="sound")
    x = sound
    for width, stride in ((8, 4), (16, 4), (32, 2)):
        x = L.Conv1D(width, 9, strides=stride, padding="same", use_bias=False)(x)
        x = L.BatchNormalization()(x)
        x = L.ReLU()(x)
    x = L.SeparableConv1D(32, 3, activation="swish")(x)
    x = L.GlobalAveragePooling1D()(x)
    return keras.Model(sound, L.Dense(CLASSES)(x), name="audio_cnn")


def _recurrent_net() -> keras.Model:
    frames = keras.Input((16, 8), name="frames")
    x = L.LSTM(16, return_sequences=True)(frames)
    x = L.LSTM(16)(x)
    return keras.Model(frames, L.Dense(CLASSES)(x), name="lstm")


_SMALL: dict[str, Case] = {
    "a small ViT": _vision_transformer,
    "a BERT-like text classifier": _text_classifier,
    "a 1-D audio CNN": _audio_net,
    "an LSTM": _recurrent_net,
}
