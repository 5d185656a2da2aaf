"""Yes-or-no labels, sequences and regression: every term and metric, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import expit, log_expit, log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import DistillationLoss, SoftTargets
from kdtflite.distillation.losses.logits.regression import RegressionDistillation
from kdtflite.errors import ConfigurationError, ShapeMismatchError

L = keras.layers
T = 2.0


def net(outputs, *, seed, activation=None, name="student"):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((4,)), L.Dense(6, "relu"), L.Dense(outputs, activation)]
    return keras.Sequential(layers, name=name)


def yes_or_no_loss(z_s, z_t):
    """T² · (p ln(p/q) + (1-p) ln((1-p)/(1-q))) with p = sigmoid(z_t / T), q = sigmoid(z_s / T)."""
    p = expit(z_t / T)
    yes = p * (log_expit(z_t / T) - log_expit(z_s / T))
    return T**2 * (yes + (1 - p) * (log_expit(-z_t / T) - log_expit(-z_s / T)))


@pytest.mark.parametrize("labels", [1, 5])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_yes_or_no_labels(data, labels, sigmoid):
    x, _, sample_weight = data
    y = np.random.default_rng(3).integers(0, 2, (21, labels)).astype(np.float32)
    activation = "sigmoid" if sigmoid else None
    student = net(labels, seed=1, activation=activation)
    teacher = net(labels, seed=2, activation=activation, name="teacher")
    distiller = Distiller(
        student, teacher, losses=[SoftTargets(T)], hard_label_weight=0.3, task="multilabel"
    )
    distiller.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.BinaryCrossentropy(from_logits=not sigmoid),
        [keras.metrics.BinaryAccuracy(threshold=0.5 if sigmoid else 0.0, name="right")],
    )
    outputs, taught = np.float64(student(x)), np.float64(teacher(x))
    if sigmoid:
        outputs, taught = (np.log(p / (1 - p)) for p in (outputs, taught))
    w = np.float64(sample_weight)
    hard = w * -(y * log_expit(outputs) + (1 - y) * log_expit(-outputs)).mean(-1)
    soft = w * yes_or_no_loss(outputs, taught).mean(-1)
    got = distiller.train_on_batch(x, y, sample_weight, return_dict=True)
    exact = 1e-4 if sigmoid else 1e-5  # Keras clips sigmoids by 1e-7 in its own loss
    np.testing.assert_allclose(got["hard_labels_loss"], hard.mean(), rtol=exact)
    np.testing.assert_allclose(got["soft_targets_loss"], soft.mean(), rtol=exact)
    total = 0.3 * got["hard_labels_loss"] + 0.7 * got["soft_targets_loss"]
    np.testing.assert_allclose(got["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(got["right"], ((outputs > 0) == (y > 0.5)).mean(), rtol=1e-6)


def test_the_task_is_read_off_the_outputs_and_the_teacher(data):
    assert Distiller(net(1, seed=1), net(1, seed=2)).task == "multilabel"
    assert Distiller(net(3, seed=1, activation="sigmoid"), net(3, seed=2)).task == "multilabel"
    assert Distiller(net(3, seed=1), net(3, seed=2, activation="sigmoid")).task == "multilabel"
    assert Distiller(net(3, seed=1), net(3, seed=2)).task == "multiclass"
    losses = [RegressionDistillation()]
    of_values = Distiller(net(3, seed=1), net(3, seed=2), losses=losses, task="regression")
    assert of_values.task == "regression"


@pytest.mark.parametrize("weighted", [False, True])
def test_regression(data, weighted):
    x, _, sample_weight = data
    y = np.random.default_rng(4).normal(0, 2, (21, 2)).astype(np.float32)
    student, teacher = net(2, seed=1), net(2, seed=2, name="teacher")
    distiller = Distiller(
        student,
        teacher,
        losses=[RegressionDistillation(kind="huber", delta=0.3)],
        hard_label_weight=0.6,
        loss_weights=[2.0],
        task="regression",
    )
    distiller.compile(keras.optimizers.SGD(0.1), "mse", ["mae"])
    outputs, taught = np.float64(student(x)), np.float64(teacher(x))
    error = np.abs(outputs - taught)
    huber = np.where(error <= 0.3, error**2 / 2, 0.3 * (error - 0.15)).mean(-1)
    w = np.float64(sample_weight) if weighted else np.ones(21)
    squared = w * np.square(outputs - y).mean(-1)
    got = distiller.train_on_batch(x, y, sample_weight if weighted else None, return_dict=True)
    np.testing.assert_allclose(got["hard_labels_loss"], squared.mean(), rtol=1e-5)
    np.testing.assert_allclose(got["regression_distillation_loss"], (w * huber).mean(), rtol=1e-5)
    total = (0.6 * squared + 2.0 * w * huber).mean()
    np.testing.assert_allclose(got["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(got["mae"], np.abs(outputs - y).mean(), rtol=1e-5)


def tagger(seed, *, masked=True, name="student"):
    """Words (0 is padding) to one of three tags per position."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(10, 4, mask_zero=masked)(inputs)
    return keras.Model(inputs, L.Dense(3)(L.Dense(5, "relu")(x)), name=name)


@pytest.fixture
def sentences():
    rng = np.random.default_rng(6)
    words = rng.integers(1, 10, (9, 6)).astype(np.int32)
    for row, length in enumerate([6, 1, 3, 5, 2, 6, 4, 1, 6]):
        words[row, length:] = 0
    return words, rng.integers(0, 3, (9, 6)), rng.uniform(0.2, 2.0, (9, 6)).astype(np.float32)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", ["not", "samples", "positions"])
def test_sequences_count_the_positions_that_are_there(sentences, masked, weighted):
    words, tags, position_weight = sentences
    student, teacher = tagger(1, masked=masked), tagger(2, masked=masked, name="teacher")
    distiller = Distiller(student, teacher, losses=[SoftTargets(T)], hard_label_weight=0.3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.1), loss, ["accuracy"])
    z_s, z_t = np.float64(student(words)), np.float64(teacher(words))
    sample_weight = {
        "not": None,
        "samples": position_weight[:, 0],
        "positions": position_weight,
    }[weighted]
    expected = {"hard_labels_loss": [], "soft_targets_loss": []}
    for i in range(9):
        hard, soft = [], []
        for t in range(6):
            if masked and words[i, t] == 0:
                continue
            w = 1.0
            if weighted == "samples":
                w = float(sample_weight[i])
            elif weighted == "positions":
                w = float(sample_weight[i, t])
            hard.append(w * -log_softmax(z_s[i, t])[tags[i, t]])
            logs = log_softmax(z_t[i, t] / T) - log_softmax(z_s[i, t] / T)
            soft.append(w * T**2 * (softmax(z_t[i, t] / T) * logs).sum())
        expected["hard_labels_loss"].extend(hard)
        expected["soft_targets_loss"].extend(soft)
    got = distiller.train_on_batch(words, tags, sample_weight, return_dict=True)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], np.mean(values), rtol=1e-5, err_msg=name)
    counts = (words != 0) | (not masked)
    right = (z_s.argmax(-1) == tags)[counts].mean()
    np.testing.assert_allclose(got["accuracy"], right, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_sample_of_one_value_weighs_as_its_positions_do_in_the_mean(sentences, masked):
    words, tags, position_weight = sentences

    class Ones(DistillationLoss):
        default_weight = 1.0

        def compute(self, step):
            return tf.ones([tf.shape(step.student.logits)[0]])

    student, teacher = tagger(1, masked=masked), tagger(2, masked=masked, name="teacher")
    distiller = Distiller(student, teacher, losses=[Ones(name="ones")])
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    got = distiller.train_on_batch(words, tags, position_weight, return_dict=True)
    counts = (words != 0) | (not masked)
    means = [weights[own].mean() for weights, own in zip(position_weight, counts, strict=True)]
    np.testing.assert_allclose(got["ones_loss"], np.mean(means), rtol=1e-5)


def test_what_stands_in_padded_positions_changes_nothing(sentences):
    words, tags, _ = sentences
    losses, steps = [], []
    for padding in (0, 2):  # labels of padded positions
        student = tagger(1)
        distiller = Distiller(student, tagger(2, name="teacher"))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.1), loss)
        labels = np.where(words == 0, padding, tags)
        losses.append(distiller.train_on_batch(words, labels))
        steps.append(student.get_weights())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    for one, other in zip(*steps, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_sequences_of_any_length_train_and_evaluate(sentences):
    words, tags, _ = sentences
    inputs = keras.Input((None,), dtype="int32")
    student = keras.Model(inputs, L.Dense(3)(L.Embedding(10, 4)(inputs)), name="open")
    distiller = Distiller(student, keras.models.clone_model(student))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("sgd", loss, ["accuracy"])
    for length in (6, 3):
        batches = tf.data.Dataset.from_tensors((words[:, :length], tags[:, :length]))
        assert np.isfinite(distiller.fit(batches, verbose=0).history["loss"]).all()
        z = np.float64(student(words[:, :length]))
        hard = -np.take_along_axis(log_softmax(z, -1), tags[:, :length, None], -1)[..., 0]
        np.testing.assert_allclose(
            distiller.evaluate(batches, verbose=0)[0], hard.mean(), rtol=1e-5
        )


def test_tasks_that_do_not_go_together_are_refused():
    with pytest.raises(ShapeMismatchError, match="decide on different numbers of labels"):
        Distiller(net(3, seed=1, activation="sigmoid"), net(4, seed=2))
    with pytest.raises(ConfigurationError, match="cannot learn from a teacher that gives sigmoid"):
        Distiller(net(3, seed=1), net(3, seed=2, activation="sigmoid"), task="multiclass")
    with pytest.raises(ConfigurationError, match="'soft_targets' is for"):
        Distiller(net(3, seed=1), net(3, seed=2), task="regression")
    distiller = Distiller(net(1, seed=1), net(1, seed=2))
    with pytest.raises(ConfigurationError, match="is not for a multilabel student"):
        distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ConfigurationError, match="reads probabilities"):
        distiller.compile("sgd", "binary_crossentropy")
