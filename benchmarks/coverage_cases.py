"""The models of benchmarks/coverage.py: whole networks, and one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

__all__ = ["Case", "list_cases", "list_fresh_cases"]

L = keras.layers
Case = Callable[[], Any]
CLASSES = 10

# The smallest input, in pixels, that each family accepts.
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


def list_cases() -> dict[str, Case]:
    """Returns a function per case, by name, that builds its model."""
    found: dict[str, Case] = {}
    for name, size in _APPLICATIONS.items():
        found[f"tf_keras.applications.{name}"] = _build_application("tf_keras", name, size)
    for name, size in _APPLICATIONS.items():
        if name not in ("RegNetX002", "RegNetY002", "ResNetRS50"):  # Keras 3 dropped them
            found[f"keras.applications.{name}"] = _build_application("keras", name, size)
    for name, build in _LAYERS.items():
        found[f"layer.{name}"] = build
    found.update(_SMALL)
    return found


def list_fresh_cases() -> dict[str, Case]:
    """Returns the whole networks of `list_cases` with the weights of a new model."""
    found = {
        f"{package}.applications.{name}": _build_application(package, name, size, fresh=True)
        for package in ("tf_keras", "keras")
        for name, size in _APPLICATIONS.items()
    }
    return {name: build for name, build in {**found, **_SMALL}.items() if name in list_cases()}


def _build_application(package: str, name: str, size: int, *, fresh: bool = False) -> Case:
    def build() -> Any:
        if package == "keras":
            import keras as keras3

            source: Any = keras3
        else:
            source = keras
        options: dict[str, Any] = {"classifier_activation": None}
        if name == "NASNetMobile":
            options = {}  # it always ends in a softmax
        model = getattr(source.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=CLASSES, **options
        )
        if not fresh:
            _randomize_normalizations(model)
        return model

    return build


def _randomize_normalizations(model: Any) -> None:
    """Sets random statistics in normalizations, so that a wrong rewrite shows."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        path = getattr(weight, "path", weight.name)
        if "variance" in path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
        elif "moving_mean" in path or "beta" in path:
            weight.assign(random.normal(0.0, 0.1, weight.shape))
        elif "gamma" in path and "layer_scale" not in path:
            weight.assign(random.uniform(0.8, 1.2, weight.shape))


def _wrap_layer(layer: Callable[[], Any], *shapes: tuple[int, ...], dtype: str = "float32") -> Case:
    """Returns a model of one layer and a dense layer that turns its output into classes."""

    def build() -> keras.Model:
        inputs = [
            keras.Input(shape, dtype=dtype, name=f"input_{i}") for i, shape in enumerate(shapes)
        ]
        x = layer()(inputs if len(inputs) > 1 else inputs[0])
        if len(x.shape) > 2:
            x = L.Flatten()(x)
        model = keras.Model(inputs, L.Dense(CLASSES, name="logits")(x), name="one_layer")
        _randomize_normalizations(model)
        return model

    return build


def _wrap_function(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Case:
    return _wrap_layer(
        lambda: lambda x: function(*x) if isinstance(x, list) else function(x), *shapes
    )


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
    "Conv1D": _wrap_layer(lambda: L.Conv1D(8, 3), SEQUENCE),
    "Conv1D causal, dilated": _wrap_layer(
        lambda: L.Conv1D(8, 3, padding="causal", dilation_rate=2), SEQUENCE
    ),
    "Conv1D strided": _wrap_layer(lambda: L.Conv1D(8, 3, strides=2, padding="same"), SEQUENCE),
    "Conv1DTranspose": _wrap_layer(lambda: L.Conv1DTranspose(8, 3, strides=2), SEQUENCE),
    "Conv2D": _wrap_layer(lambda: L.Conv2D(8, 3), IMAGE),
    "Conv2D dilated": _wrap_layer(lambda: L.Conv2D(8, 3, dilation_rate=2), IMAGE),
    "Conv2D grouped": _wrap_layer(lambda: L.Conv2D(8, 3, groups=2), IMAGE),
    "Conv2DTranspose": _wrap_layer(lambda: L.Conv2DTranspose(8, 3, strides=2), IMAGE),
    "DepthwiseConv1D": _wrap_layer(lambda: L.DepthwiseConv1D(3), SEQUENCE),
    "DepthwiseConv2D": _wrap_layer(lambda: L.DepthwiseConv2D(3), IMAGE),
    "DepthwiseConv2D, multiplier 2": _wrap_layer(
        lambda: L.DepthwiseConv2D(3, depth_multiplier=2), IMAGE
    ),
    "SeparableConv1D": _wrap_layer(lambda: L.SeparableConv1D(8, 3), SEQUENCE),
    "SeparableConv2D": _wrap_layer(lambda: L.SeparableConv2D(8, 3), IMAGE),
    "Dense": _wrap_layer(lambda: L.Dense(8), VECTOR),
    "Dense on sequences": _wrap_layer(lambda: L.Dense(8), SEQUENCE),
    "Dense on images": _wrap_layer(lambda: L.Dense(8), IMAGE),
    "EinsumDense": _wrap_layer(lambda: L.EinsumDense("abc,cd->abd", (None, 8)), SEQUENCE),
    "Embedding": _wrap_layer(lambda: L.Embedding(20, 8), (12,), dtype="int32"),
    "LSTM": _wrap_layer(lambda: L.LSTM(8), SEQUENCE),
    "LSTM, sequences": _wrap_layer(lambda: L.LSTM(8, return_sequences=True), SEQUENCE),
    "GRU": _wrap_layer(lambda: L.GRU(8), SEQUENCE),
    "GRU, sequences": _wrap_layer(lambda: L.GRU(8, return_sequences=True), SEQUENCE),
    "SimpleRNN": _wrap_layer(lambda: L.SimpleRNN(8), SEQUENCE),
    "Bidirectional LSTM": _wrap_layer(lambda: L.Bidirectional(L.LSTM(8)), SEQUENCE),
    "TimeDistributed Dense": _wrap_layer(lambda: L.TimeDistributed(L.Dense(8)), SEQUENCE),
    "TimeDistributed Conv2D": _wrap_layer(lambda: L.TimeDistributed(L.Conv2D(4, 3)), (3, *IMAGE)),
    "MultiHeadAttention": _wrap_function(lambda x: L.MultiHeadAttention(2, 4)(x, x), SEQUENCE),
    "MultiHeadAttention, causal": _wrap_function(
        lambda x: L.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True), SEQUENCE
    ),
    "MultiHeadAttention across": _wrap_function(
        lambda x, y: L.MultiHeadAttention(2, 4)(x, y), SEQUENCE, (5, 6)
    ),
    "Attention": _wrap_function(lambda x: L.Attention()([x, x]), SEQUENCE),
    "AdditiveAttention": _wrap_function(lambda x: L.AdditiveAttention()([x, x]), SEQUENCE),
    "BatchNormalization": _wrap_layer(lambda: L.BatchNormalization(), IMAGE),
    "BatchNormalization of vectors": _wrap_layer(lambda: L.BatchNormalization(), VECTOR),
    "BatchNormalization of sequences": _wrap_layer(lambda: L.BatchNormalization(), SEQUENCE),
    "LayerNormalization": _wrap_layer(lambda: L.LayerNormalization(), SEQUENCE),
    "LayerNormalization of images": _wrap_layer(lambda: L.LayerNormalization(), IMAGE),
    "GroupNormalization": _wrap_layer(lambda: L.GroupNormalization(2), IMAGE),
    "UnitNormalization": _wrap_layer(lambda: L.UnitNormalization(), VECTOR),
    "Rescaling": _wrap_layer(lambda: L.Rescaling(1 / 127.5, -1.0), IMAGE),
    "Normalization": _wrap_layer(
        lambda: L.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[0.5, 1, 2, 3]), IMAGE
    ),
    "MaxPooling1D": _wrap_layer(lambda: L.MaxPooling1D(2), SEQUENCE),
    "MaxPooling2D": _wrap_layer(lambda: L.MaxPooling2D(2), IMAGE),
    "AveragePooling1D": _wrap_layer(lambda: L.AveragePooling1D(2), SEQUENCE),
    "AveragePooling2D": _wrap_layer(lambda: L.AveragePooling2D(2), IMAGE),
    "GlobalMaxPooling1D": _wrap_layer(lambda: L.GlobalMaxPooling1D(), SEQUENCE),
    "GlobalMaxPooling2D": _wrap_layer(lambda: L.GlobalMaxPooling2D(), IMAGE),
    "GlobalAveragePooling1D": _wrap_layer(lambda: L.GlobalAveragePooling1D(), SEQUENCE),
    "GlobalAveragePooling2D": _wrap_layer(lambda: L.GlobalAveragePooling2D(), IMAGE),
    "UpSampling1D": _wrap_layer(lambda: L.UpSampling1D(2), SEQUENCE),
    "UpSampling2D": _wrap_layer(lambda: L.UpSampling2D(2), IMAGE),
    "UpSampling2D bilinear": _wrap_layer(
        lambda: L.UpSampling2D(2, interpolation="bilinear"), IMAGE
    ),
    "ZeroPadding1D": _wrap_layer(lambda: L.ZeroPadding1D(2), SEQUENCE),
    "ZeroPadding2D": _wrap_layer(lambda: L.ZeroPadding2D(2), IMAGE),
    "Cropping1D": _wrap_layer(lambda: L.Cropping1D(2), SEQUENCE),
    "Cropping2D": _wrap_layer(lambda: L.Cropping2D(2), IMAGE),
    "Resizing": _wrap_layer(lambda: L.Resizing(6, 6), IMAGE),
    "Flatten": _wrap_layer(lambda: L.Flatten(), IMAGE),
    "Reshape": _wrap_layer(lambda: L.Reshape((16, 16)), IMAGE),
    "Permute": _wrap_layer(lambda: L.Permute((2, 1, 3)), IMAGE),
    "RepeatVector": _wrap_layer(lambda: L.RepeatVector(3), VECTOR),
    "Add": _wrap_layer(lambda: L.Add(), IMAGE, IMAGE),
    "Subtract": _wrap_layer(lambda: L.Subtract(), IMAGE, IMAGE),
    "Multiply": _wrap_layer(lambda: L.Multiply(), IMAGE, IMAGE),
    "Average": _wrap_layer(lambda: L.Average(), IMAGE, IMAGE),
    "Maximum": _wrap_layer(lambda: L.Maximum(), IMAGE, IMAGE),
    "Minimum": _wrap_layer(lambda: L.Minimum(), IMAGE, IMAGE),
    "Concatenate": _wrap_layer(lambda: L.Concatenate(), IMAGE, IMAGE),
    "Dot": _wrap_layer(lambda: L.Dot(axes=(2, 2)), SEQUENCE, SEQUENCE),
    "Dropout": _wrap_layer(lambda: L.Dropout(0.3), IMAGE),
    "SpatialDropout2D": _wrap_layer(lambda: L.SpatialDropout2D(0.3), IMAGE),
    "GaussianNoise": _wrap_layer(lambda: L.GaussianNoise(0.1), IMAGE),
    "RandomFlip": _wrap_layer(lambda: L.RandomFlip(), IMAGE),
    "Masking": _wrap_layer(lambda: L.Masking(), SEQUENCE),
    "ReLU": _wrap_layer(lambda: L.ReLU(), IMAGE),
    "ReLU up to 1": _wrap_layer(lambda: L.ReLU(max_value=1.0), IMAGE),
    "ReLU with a slope": _wrap_layer(lambda: L.ReLU(negative_slope=0.1), IMAGE),
    "LeakyReLU": _wrap_layer(lambda: L.LeakyReLU(), IMAGE),
    "PReLU": _wrap_layer(lambda: L.PReLU(shared_axes=[1, 2]), IMAGE),
    "ELU": _wrap_layer(lambda: L.ELU(), IMAGE),
    "ThresholdedReLU": _wrap_layer(lambda: L.ThresholdedReLU(0.2), IMAGE),
    "Softmax": _wrap_layer(lambda: L.Softmax(), IMAGE),
    **{
        f"Activation {name}": _wrap_layer(lambda name=name: L.Activation(name), IMAGE)
        for name in _ACTIVATIONS
    },
    **{
        f"Conv2D with {name}": _wrap_layer(lambda name=name: L.Conv2D(8, 3, activation=name), IMAGE)
        for name in ("elu", "gelu", "hard_sigmoid", "mish", "selu", "softplus", "swish")
    },
    "x plus y": _wrap_function(lambda x, y: x + y, IMAGE, IMAGE),
    "x * 2 + 1": _wrap_function(lambda x: x * 2.0 + 1.0, IMAGE),
    "x minus y": _wrap_function(lambda x, y: x - y, IMAGE, IMAGE),
    "x[:, 1:]": _wrap_function(lambda x: x[:, 1:], IMAGE),
    "tf.concat": _wrap_function(lambda x, y: tf.concat([x, y], axis=-1), IMAGE, IMAGE),
    "tf.matmul": _wrap_function(lambda x: tf.matmul(x, x, transpose_b=True), SEQUENCE),
    "tf.reduce_mean": _wrap_function(lambda x: tf.reduce_mean(x, axis=1), SEQUENCE),
    "tf.reduce_max": _wrap_function(lambda x: tf.reduce_max(x, axis=1), SEQUENCE),
    "tf.reshape, tf.transpose": _wrap_function(
        lambda x: tf.transpose(tf.reshape(x, (-1, 6, 12)), (0, 2, 1)), SEQUENCE
    ),
    "tf.clip_by_value": _wrap_function(lambda x: tf.clip_by_value(x, 0.0, 0.8), IMAGE),
    "x * relu6(x + 3) / 6": _wrap_function(lambda x: x * tf.nn.relu6(x + 3.0) / 6.0, IMAGE),
}


def _build_vision_transformer() -> keras.Model:
    image = keras.Input((16, 16, 3), name="image")
    x = L.Conv2D(32, 4, strides=4, name="patches")(image)
    x = L.Reshape((16, 32))(x)
    x = _Positions(name="positions")(x)
    for i in range(2):
        x = _add_block(x, 32, i)
    x = L.LayerNormalization(epsilon=1e-6)(x)
    return keras.Model(image, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(x)), name="vit")


@keras.utils.register_keras_serializable("coverage")
class _Positions(L.Layer):
    """Adds a learned vector to each position, as most code for transformers does."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight("table", shape=input_shape[1:], initializer="uniform")

    def call(self, x: Any) -> Any:
        return x + self.table


def _add_block(x: Any, width: int, i: int, mask: Any = None) -> Any:
    y = L.LayerNormalization(epsilon=1e-6, name=f"block{i}_norm1")(x)
    y = L.MultiHeadAttention(4, width // 4, name=f"block{i}_attention")(y, y)
    x = L.Add(name=f"block{i}_add1")([x, y])
    y = L.LayerNormalization(epsilon=1e-6, name=f"block{i}_norm2")(x)
    y = L.Dense(2 * width, activation="gelu", name=f"block{i}_wide")(y)
    y = L.Dense(width, name=f"block{i}_narrow")(y)
    return L.Add(name=f"block{i}_add2")([x, y])


def _build_text_classifier() -> keras.Model:
    tokens = keras.Input((24,), dtype="int32", name="tokens")
    places = tf.range(24)
    x = L.Embedding(20, 32, mask_zero=True, name="words")(tokens)
    x = L.Add()([x, L.Embedding(24, 32, name="places")(tf.zeros_like(tokens) + places)])
    x = L.LayerNormalization()(x)
    for i in range(2):
        x = _add_block(x, 32, i)
    return keras.Model(tokens, L.Dense(2)(x[:, 0]), name="bert_like")


def _build_audio_net() -> keras.Model:
    sound = keras.Input((512, 1), name="sound")
    x = sound
    for width, stride in ((8, 4), (16, 4), (32, 2)):
        x = L.Conv1D(width, 9, strides=stride, padding="same", use_bias=False)(x)
        x = L.BatchNormalization()(x)
        x = L.ReLU()(x)
    x = L.SeparableConv1D(32, 3, activation="swish")(x)
    x = L.GlobalAveragePooling1D()(x)
    return keras.Model(sound, L.Dense(CLASSES)(x), name="audio_cnn")


def _build_recurrent_net() -> keras.Model:
    frames = keras.Input((16, 8), name="frames")
    x = L.LSTM(16, return_sequences=True)(frames)
    x = L.LSTM(16)(x)
    return keras.Model(frames, L.Dense(CLASSES)(x), name="lstm")


def _build_gru() -> keras.Model:
    frames = keras.Input((16, 8), name="frames")
    x = L.Bidirectional(L.GRU(12, return_sequences=True))(frames)
    return keras.Model(frames, L.Dense(CLASSES)(L.GRU(12)(x)), name="gru")


def _build_tcn() -> keras.Model:
    frames = keras.Input((32, 8), name="frames")
    x = L.Conv1D(16, 1)(frames)
    for dilation in (1, 2, 4, 8):
        y = L.Conv1D(16, 3, padding="causal", dilation_rate=dilation, use_bias=False)(x)
        y = L.ReLU()(L.BatchNormalization()(y))
        x = L.Add()([x, L.Conv1D(16, 1)(y)])
    return keras.Model(frames, L.Dense(CLASSES)(x[:, -1]), name="tcn")


def _build_unet() -> keras.Model:
    image = keras.Input((32, 32, 3), name="image")
    skips, x = [], image
    for width in (8, 16):
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, padding="same")(x)))
        skips.append(x)
        x = L.MaxPooling2D()(x)
    for skip in reversed(skips):
        x = L.Conv2DTranspose(skip.shape[-1], 2, strides=2)(x)
        x = L.Concatenate()([x, skip])
        x = L.ReLU()(L.BatchNormalization()(L.Conv2D(skip.shape[-1], 3, padding="same")(x)))
    return keras.Model(image, L.Dense(CLASSES)(L.GlobalAveragePooling2D()(x)), name="unet")


_SMALL: dict[str, Case] = {
    "a small ViT": _build_vision_transformer,
    "a BERT-like text classifier": _build_text_classifier,
    "a 1-D audio CNN": _build_audio_net,
    "an LSTM": _build_recurrent_net,
    "a GRU, both ways": _build_gru,
    "a TCN": _build_tcn,
    "a U-Net": _build_unet,
}
