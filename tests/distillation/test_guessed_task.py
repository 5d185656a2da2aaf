"""A task that is read off the last layer is printed, and refused where loss or labels disagree."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import RegressionDistillation
from kdtflite.distillation.ways.multi_task import MultiTaskDistiller
from kdtflite.distillation.ways.mutual import MutualDistiller
from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller
from kdtflite.errors import ConfigurationError, DataError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (30, 4)).astype(np.float32)
COORDINATES = RNG.uniform(0, 100, (30, 8)).astype(np.float32)
MULTI_HOT = (RNG.uniform(size=(30, 8)) < 0.4).astype(np.float32)
CLASSES = RNG.integers(0, 8, 30)
ONE_HOT = np.eye(8, dtype=np.float32)[CLASSES]


def net(units, seed, activation=None, name="student"):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    return keras.Model(inputs, L.Dense(units, activation, name="out")(inputs), name=name)


def build(units, loss, activation=None, way=Distiller, **options):
    distiller = way(net(units, 1, activation), net(units, 2, activation), **options)
    distiller.compile("sgd", loss)
    return distiller


@pytest.mark.parametrize(
    ("units", "activation", "said"),
    [
        (8, None, "one of 8 classes (seen"),
        (8, "softmax", "one of 8 classes (seen"),
        (1, None, "yes or no (seen"),
        (8, "sigmoid", "yes or no for each of 8 labels (seen"),
    ],
)
def test_the_guess_is_printed(capsys, units, activation, said):
    Distiller(net(units, 1, activation), net(units, 2, activation))
    said = f"The student 'student' is taken to decide {said} from its last layer); pass task="
    assert said in capsys.readouterr().err
    task = "multilabel" if "yes" in said else "multiclass"
    if activation == "sigmoid":
        Distiller(net(units, 1), net(units, 2, activation))
        assert "each of 8 labels (seen from the teacher's last layer)" in capsys.readouterr().err
    Distiller(net(units, 1, activation), net(units, 2, activation), task=task)
    assert "is taken to decide" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "loss", ["mse", keras.losses.MeanAbsoluteError(), keras.losses.Huber(), "log_cosh", "poisson"]
)
@pytest.mark.parametrize(("units", "guess"), [(1, "multilabel"), (8, "multiclass")])
def test_a_loss_on_values_contradicts_it(loss, units, guess):
    with pytest.raises(ConfigurationError, match="compares values") as error:
        build(units, loss)
    assert f"Pass task='regression' to the constructor, or task='{guess}' if" in str(error.value)
    build(units, loss, task=guess)  # who says so is believed
    build(units, loss, task="regression", losses=[RegressionDistillation()])


def sigmoid_loss(y, z):
    return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32), z)


def squared(y, z):
    return tf.square(tf.cast(y, tf.float32) - z)


@pytest.mark.parametrize(
    ("units", "activation", "loss", "labels", "what", "task"),
    [
        (8, None, squared, COORDINATES, "rows of values such as", "regression"),
        (8, None, squared, -ONE_HOT, "rows of values such as -1", "regression"),
        (8, "softmax", "mse", COORDINATES, "rows of values such as", "regression"),
        (8, None, sigmoid_loss, MULTI_HOT, "rows that add up to", "multilabel"),
        (8, None, sigmoid_loss, MULTI_HOT.astype(int), "rows that add up to", "multilabel"),
        (8, "softmax", "categorical_crossentropy", MULTI_HOT, "rows that add up", "multilabel"),
        (8, None, squared, COORDINATES[:, 0], "values such as", "regression"),
        (1, None, squared, COORDINATES[:, 0], "values such as", "regression"),
        (1, None, squared, COORDINATES[:, :1], "values such as", "regression"),
        (1, None, sigmoid_loss, CLASSES, "values such as", "regression"),
        (8, "sigmoid", "binary_crossentropy", COORDINATES, "values such as", "regression"),
        (8, "sigmoid", "mse", 3 * MULTI_HOT, "values such as 3", "regression"),
    ],
)
def test_labels_contradict_it(units, activation, loss, labels, what, task):
    distiller = build(units, loss, activation)
    with pytest.raises(DataError, match=f"but the labels are {what}.*Pass task='{task}' to the"):
        distiller.fit(X, labels, verbose=0)
    with pytest.raises(DataError, match=what):
        distiller.fit(iter([(X, labels)]), verbose=0)


@pytest.mark.parametrize(
    ("units", "activation", "loss", "labels"),
    [
        (8, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), CLASSES),
        (8, None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), CLASSES * 1.0),
        (8, None, keras.losses.CategoricalCrossentropy(from_logits=True), ONE_HOT),
        (8, None, keras.losses.CategoricalCrossentropy(from_logits=True), ONE_HOT * 0.8 + 0.025),
        (8, None, keras.losses.CategoricalCrossentropy(from_logits=True), ONE_HOT.astype(int)),
        (8, "softmax", "mse", ONE_HOT),
        (8, None, squared, ONE_HOT),
        (8, "sigmoid", "mse", MULTI_HOT),
        (8, "sigmoid", "binary_crossentropy", MULTI_HOT * 0.9 + 0.05),
        (1, None, "hinge", CLASSES % 2 * 2 - 1),
        (1, None, sigmoid_loss, (CLASSES % 2)[:, None]),
    ],
)
def test_labels_that_agree_are_taken(units, activation, loss, labels):
    build(units, loss, activation).fit(X, labels, verbose=0)


def test_a_task_that_was_given_is_not_questioned():
    build(8, squared, task="multiclass").fit(X, COORDINATES, verbose=0)


def test_void_and_unlabeled_samples_are_not_held_against_it():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    build(8, loss).fit(X, np.where(np.arange(30) % 3, CLASSES, -1.0), verbose=0)
    rows = np.where(np.arange(30)[:, None] % 3, ONE_HOT, -1)
    categorical = keras.losses.CategoricalCrossentropy(from_logits=True)
    build(8, categorical, way=SemiSupervisedDistiller).fit(X, rows, verbose=0)


def test_peers_and_tasks_are_held_against_it_too():
    peers = MutualDistiller([net(8, 1, name="one"), net(8, 2, name="two")])
    with pytest.raises(ConfigurationError, match="Pass task='regression' to the"):
        peers.compile("sgd", "mse")
    peers.compile("sgd", squared)
    with pytest.raises(DataError, match=r"the labels of 'one' are rows of values"):
        peers.fit(X, COORDINATES, verbose=0)
    inputs = keras.Input((4,))
    heads = [L.Dense(8, name="box")(inputs), L.Dense(8, name="kind")(inputs)]
    tasks = MultiTaskDistiller(keras.Model(inputs, heads), {"kind": net(8, 2)})
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ConfigurationError, match=r"Pass tasks=\{'box': 'regression'\} to"):
        tasks.compile("sgd", {"box": "mse", "kind": sparse})
