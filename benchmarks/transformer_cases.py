"""The data, students and teachers of benchmarks/quantized_transformers.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

import kdtflite
from kdtflite.data import Augmentation, Split, stratified_split
from kdtflite.models import build_model

__all__ = ["CASES", "Case", "Training"]

L = keras.layers
HEADS = 4
PATCH, PATCHES = 4, 49  # pixels per side, and number of patches in 28 × 28
LENGTH, WORDS, PAIRS = (
    32,
    5000,
    20_000,
)  # tokens per sentence, vocabulary size, hash buckets for pairs
PADDING, UNKNOWN = 0, 1  # TextVectorization's own


@dataclass(frozen=True)
class Training:
    """One training: its model, Adam's peak learning rate and the epochs."""

    build: Callable[[], keras.Model]
    rate: float
    epochs: int


@dataclass(frozen=True)
class Case:
    """One task.

    Attributes:
        train: Training samples.
        test: Samples for every accuracy.
        augment: Makes views of a training batch, from the batch and a seed of two integers.
        batch: Samples per step.
        teachers: Their mean is the teacher.
        student: The float student.
        temperature: Temperature of the soft targets.
        qat_rate: Peak learning rate of quantization-aware training.
        qat_epochs: Epochs of quantization-aware training.
    """

    train: Split
    test: Split
    augment: Callable[[Any, Any], Any]
    batch: int
    teachers: tuple[Training, ...]
    student: Training
    temperature: float
    qat_rate: float
    qat_epochs: int


def make_vision_case(data: Path | None) -> Case:
    """Returns a ViT (arXiv 2010.11929) on Fashion-MNIST with a convnet as teacher (2012.12877)."""
    path = "auto" if data is None else data / "fashion_mnist.npz"
    dataset = kdtflite.data.load("fashion_mnist", path=path, seed=0)

    def build_teacher() -> keras.Model:
        shape = dataset.sample_shape
        return build_model("convnet", input_shape=shape, classes=10, widths=[16, 32, 64])

    return Case(
        dataset.train,
        dataset.test,
        Augmentation(shift=2.0, flip=True),
        128,
        (Training(build_teacher, 3e-3, 5),),
        Training(build_vision_transformer, 2e-3, 10),
        temperature=1.0,
        qat_rate=1e-4,
        qat_epochs=2,
    )


def make_text_case(data: Path | None) -> Case:
    """Returns a BERT-like classifier of words on SST-2, with three other networks as teachers."""
    if data is None:
        raise SystemExit("The text case needs --data, a folder with sst2.npz.")
    arrays = np.load(data / "sst2.npz")
    sentences, labels = _read_sentences(arrays, "train")
    train, _ = stratified_split(labels, 0.1, seed=0)
    words = L.TextVectorization(WORDS, standardize=None, output_sequence_length=LENGTH)
    words.adapt([sentences[i] for i in train])
    tokens = words(sentences).numpy().astype(np.int32)
    test_sentences, test_labels = _read_sentences(arrays, "dev")
    return Case(
        Split(tokens[train], labels[train]),
        Split(words(test_sentences).numpy().astype(np.int32), test_labels),
        drop_words,
        64,
        (
            Training(build_bag_of_pairs, 1e-2, 8),
            Training(build_text_convnet, 1e-3, 8),
            Training(lambda: build_text_classifier(96), 5e-4, 8),
        ),
        Training(build_text_classifier, 5e-4, 8),
        temperature=2.0,
        qat_rate=1e-4,
        qat_epochs=2,
    )


CASES: dict[str, Callable[[Path | None], Case]] = {
    "vision": make_vision_case,
    "text": make_text_case,
}


def _read_sentences(arrays: Any, split: str) -> tuple[list[str], np.ndarray]:
    content, offsets = arrays[f"{split}_text"].tobytes(), arrays[f"{split}_offsets"]
    found = [content[a:b].decode() for a, b in itertools.pairwise(offsets)]
    return found, arrays[f"{split}_labels"].astype(np.int64)


def drop_words(tokens: Any, seed: Any) -> Any:
    """Makes every fifth word unknown, so that a teacher cannot rely on memorized sentences."""
    dropped = tf.random.stateless_uniform(tf.shape(tokens), seed) < 0.2
    return tf.where(dropped & (tokens != PADDING), UNKNOWN, tokens)


def build_vision_transformer(width: int = 32, blocks: int = 2) -> keras.Model:
    image = keras.Input((28, 28, 1), name="image")
    x = L.Conv2D(width, PATCH, strides=PATCH, name="patches")(image)
    x = L.Reshape((PATCHES, width), name="sequence")(x)
    x = _add_positions(x, tf.zeros_like(x[:, :, 0], dtype="int32"), width)
    for i in range(blocks):
        x = _add_block(x, width, f"block{i}")
    return keras.Model(image, _add_classifier(x, 10), name="vit")


def build_text_classifier(width: int = 64, blocks: int = 2) -> keras.Model:
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = L.Embedding(WORDS, width, mask_zero=True, name="words")(tokens)
    x = L.Dropout(0.2, name="words_dropout")(_add_positions(x, tf.zeros_like(tokens), width))
    for i in range(blocks):
        x = _add_block(x, width, f"block{i}", dropout=0.2)
    return keras.Model(tokens, _add_classifier(x, 2, dropout=0.2), name="bert_like")


def _add_positions(x: Any, zeros: Any, width: int) -> Any:
    """Adds a learned vector to each position."""
    steps = x.shape[1]
    return L.Add(name="placed")([x, L.Embedding(steps, width, name="places")(zeros + range(steps))])


def _add_block(x: Any, width: int, name: str, dropout: float = 0.0) -> Any:
    """Adds attention, then two dense layers, each with a normalization before and a sum after."""
    y = L.LayerNormalization(epsilon=1e-6, name=f"{name}_norm1")(x)
    attention = L.MultiHeadAttention(
        HEADS, width // HEADS, dropout=dropout, name=f"{name}_attention"
    )
    y = L.Dropout(dropout, name=f"{name}_dropout1")(attention(y, y))
    x = L.Add(name=f"{name}_add1")([x, y])
    y = L.LayerNormalization(epsilon=1e-6, name=f"{name}_norm2")(x)
    y = L.Dense(2 * width, activation="gelu", name=f"{name}_wide")(y)
    y = L.Dropout(dropout, name=f"{name}_dropout2")(L.Dense(width, name=f"{name}_narrow")(y))
    return L.Add(name=f"{name}_add2")([x, y])


def _add_classifier(x: Any, classes: int, dropout: float = 0.0) -> Any:
    x = L.LayerNormalization(epsilon=1e-6, name="norm")(x)
    x = L.Dropout(dropout, name="dropout")(L.GlobalAveragePooling1D(name="mean")(x))
    return L.Dense(classes, name="logits")(x)


def build_bag_of_pairs() -> keras.Model:
    """Builds fastText (arXiv 1607.01759): the mean of vectors of words and hashed word pairs."""
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    there = tf.cast(tokens != PADDING, "float32")[:, :, tf.newaxis]
    pairs = (tokens[:, :-1] * 31_337 + tokens[:, 1:]) % PAIRS
    total = tf.reduce_sum(L.Embedding(WORDS, 16)(tokens) * there, axis=1)
    total += tf.reduce_sum(L.Embedding(PAIRS, 16)(pairs) * there[:, 1:], axis=1)
    mean = total / (tf.reduce_sum(there, axis=1) + 1.0)
    return keras.Model(tokens, L.Dense(2)(L.Dropout(0.5)(mean)), name="bag_of_pairs")


def build_text_convnet() -> keras.Model:
    """Builds convolutions of 2 to 4 words with max pooling (Kim, arXiv 1408.5882)."""
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    x = L.SpatialDropout1D(0.2)(L.Embedding(WORDS, 64)(tokens))
    pooled = [
        L.GlobalMaxPooling1D()(L.Conv1D(64, size, padding="same", activation="relu")(x))
        for size in (2, 3, 4)
    ]
    x = L.Dropout(0.5)(L.Concatenate()(pooled))
    return keras.Model(tokens, L.Dense(2)(x), name="text_convnet")
