"""HardLabels is the user's own Keras loss before its reduction."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.losses import HardLabels
from kdtflite.errors import ConfigurationError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 4)).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
CLASSES = np.array([0, 3, 1, 1, 2, 0])
ONE_HOT = np.eye(4, dtype=np.float32)[CLASSES]
DISTRIBUTIONS = RNG.dirichlet(np.ones(4), 6).astype(np.float32)
NONE = keras.losses.Reduction.NONE
losses = keras.losses


def test_the_values_worked_by_hand():
    # softmax(0, 0) = (½, ½), softmax(ln 3, 0) = (¾, ¼)
    logits = np.array([[0.0, 0.0], [np.log(3.0), 0.0]], np.float32)
    values = HardLabels(losses.SparseCategoricalCrossentropy(from_logits=True))([1, 1], logits)
    np.testing.assert_allclose(values, [np.log(2), np.log(4)], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "unreduced", "labels", "predictions"),
    [
        (
            losses.SparseCategoricalCrossentropy(from_logits=True),
            losses.SparseCategoricalCrossentropy(from_logits=True, reduction=NONE),
            CLASSES,
            LOGITS,
        ),
        (
            losses.SparseCategoricalCrossentropy(from_logits=True),
            losses.SparseCategoricalCrossentropy(from_logits=True, reduction=NONE),
            CLASSES[:, None],
            LOGITS,
        ),
        (
            "sparse_categorical_crossentropy",
            losses.SparseCategoricalCrossentropy(reduction=NONE),
            CLASSES,
            PROBABILITIES,
        ),
        (
            "sparse_categorical_crossentropy",
            losses.SparseCategoricalCrossentropy(reduction=NONE),
            CLASSES[:, None],
            PROBABILITIES,
        ),
        (
            losses.categorical_crossentropy,
            losses.CategoricalCrossentropy(reduction=NONE),
            ONE_HOT,
            PROBABILITIES,
        ),
        (
            losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
            losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction=NONE),
            DISTRIBUTIONS,
            LOGITS,
        ),
        (
            losses.CategoricalFocalCrossentropy(gamma=3.0),
            losses.CategoricalFocalCrossentropy(gamma=3.0, reduction=NONE),
            ONE_HOT,
            PROBABILITIES,
        ),
        ("mse", losses.MeanSquaredError(reduction=NONE), DISTRIBUTIONS, PROBABILITIES),
        ("kl_divergence", losses.KLDivergence(reduction=NONE), DISTRIBUTIONS, PROBABILITIES),
    ],
)
def test_it_gives_keras_own_value_of_each_sample(given, unreduced, labels, predictions):
    values = HardLabels(given)(labels, predictions)
    assert values.shape == (6,)
    assert values.dtype == tf.float32
    np.testing.assert_allclose(values, unreduced(labels, predictions), rtol=1e-6)
    assert len(np.unique(values)) == 6


@pytest.mark.parametrize(
    "given",
    ["mse", losses.MeanSquaredError(), lambda y, p: tf.square(y - p)],
    ids=["name", "class", "function"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_of_a_single_output_need_no_axis_of_their_own(given, dtype):
    outputs = np.array([[1.0], [2.0], [4.0]], np.float32)
    # 1 - 0, 2 - 2, 4 - 1; each with every label would be means of nine squares
    values = HardLabels(given)(np.array([0.0, 2.0, 1.0], dtype), outputs)
    np.testing.assert_allclose(values, [1.0, 0.0, 9.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["binary_crossentropy", "binary_focal_crossentropy"])
def test_yes_or_no_labels_need_no_axis_of_their_own(name):
    labels, outputs = np.array([0, 1, 1]), np.array([[0.25], [0.5], [0.8]], np.float32)
    found = HardLabels(name)(labels, outputs)
    np.testing.assert_allclose(found, HardLabels(name)(labels[:, None], outputs), rtol=1e-6)
    if name == "binary_crossentropy":
        np.testing.assert_allclose(found, -np.log([0.75, 0.5, 0.8]), rtol=1e-5)


def test_a_function_of_ones_own():
    def absolute(labels, predictions):
        return tf.abs(tf.cast(labels, tf.float32) - predictions)  # (batch, classes): averaged

    values = HardLabels(absolute)(ONE_HOT, PROBABILITIES)
    np.testing.assert_allclose(values, np.abs(ONE_HOT - PROBABILITIES).mean(axis=1), rtol=1e-6)


def test_a_loss_class_of_ones_own():
    class Margin(keras.losses.Loss):
        def call(self, labels, predictions):
            return tf.reduce_sum(tf.nn.relu(1.0 - labels * predictions), axis=1)

    values = HardLabels(Margin())(ONE_HOT, LOGITS)
    np.testing.assert_allclose(values, np.maximum(1 - ONE_HOT * LOGITS, 0).sum(axis=1), rtol=1e-6)


def test_half_precision_predictions_are_computed_in_float32():
    loss = HardLabels(losses.SparseCategoricalCrossentropy(from_logits=True))
    half = np.array([[6.0, 0.0]], np.float16)
    # ln(1 + e^-6) = 0.0024757, which float16 would give as 0.00248 or 0.
    np.testing.assert_allclose(loss([0], half), [np.log1p(np.exp(-6.0))], rtol=1e-4)
    assert loss([0], half).dtype == tf.float32


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "mse"])
def test_an_empty_batch_gives_no_values(loss):
    labels = np.zeros(0, int) if loss.startswith("sparse") else np.zeros((0, 4), np.float32)
    assert HardLabels(loss)(labels, np.zeros((0, 4), np.float32)).shape == (0,)


def test_a_loss_that_sums_over_the_batch_is_refused():
    with pytest.raises(ConfigurationError, match="sums over the batch"):
        HardLabels(losses.MeanSquaredError(reduction="sum"))


@pytest.mark.parametrize("loss", ["cross_entropy_of_some_kind", 3, {"logits": "mse"}])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(ConfigurationError, match="Expected the name of a Keras loss"):
        HardLabels(loss)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sparse_categorical_crossentropy", False),
        (losses.categorical_crossentropy, False),
        (losses.CategoricalCrossentropy(), False),
        (losses.CategoricalCrossentropy(from_logits=True), True),
        (losses.SparseCategoricalCrossentropy(from_logits=True), True),
        ("mse", None),
        (lambda labels, outputs: outputs[:, 0], None),
    ],
)
def test_it_says_whether_it_reads_logits(loss, expected):
    assert HardLabels(loss).reads_logits() is expected
