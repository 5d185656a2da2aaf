"""The first batch is checked before Keras meets it, and nothing Keras takes is refused."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation import Distiller
from kdtflite.distillation.checks.first_batch import check_first_batch
from kdtflite.errors import DataError, ShapeMismatchError

L = keras.layers
Sparse = keras.losses.SparseCategoricalCrossentropy
X = np.random.default_rng(0).normal(0, 1, (12, 4)).astype(np.float32)
Y = np.arange(12) % 3


def distiller(models, loss=None):
    made = Distiller(models.student(), models.teacher())
    made.compile("sgd", loss or Sparse(from_logits=True))
    return made


def as_arguments(kind, x, y):
    """`x` and `y` as arguments of fit, in one of the forms that it takes."""

    class Batches(keras.utils.Sequence):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            part = slice(4 * i, 4 * i + 4)
            return x[part] if y is None else (x[part], y[part])

    if kind == "arrays":
        return {"x": x, "y": y}
    if kind == "dataset":
        parts = x if y is None else (x, y)
        return {"x": tf.data.Dataset.from_tensor_slices(parts).batch(4)}
    if kind == "sequence":
        return {"x": Batches()}
    return {"x": (Batches()[i] for i in range(3))}


KINDS = ["arrays", "dataset", "sequence", "generator"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (X, Y + 1, DataError, r"Expected 0 to 2, .* Received: 3\."),
        (X, Y - 1, DataError, r"Expected 0 to 2, .* Received: -1\."),
        (X, np.eye(3)[Y], DataError, r"labels of shape \(samples,\).*argmax"),
        (X, None, DataError, "needs labels.*Received: none"),
        (X, np.array(["a", "b", "c"])[Y], DataError, "labels as numbers. Received: strings"),
        (X[:, :3], Y, ShapeMismatchError, r"Expected shape \(None, 4\). Received: \(\w+, 3\)"),
        (np.full((12, 4), "a"), Y, DataError, "numbers as samples, float32. Received: strings"),
    ],
)
def test_what_does_not_fit_is_one_sentence(models, kind, x, y, error, message):
    with pytest.raises(error, match=message):
        distiller(models).fit(**as_arguments(kind, x, y), verbose=0)


def test_class_indices_for_a_loss_of_rows(models):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    with pytest.raises(DataError, match=r"shape \('samples', 3\). Received: \(12,\)"):
        distiller(models, loss).fit(X, Y, verbose=0)
    distiller(models, loss).fit(X, np.eye(3)[Y], verbose=0)


@pytest.mark.parametrize(("labels", "right"), [((12,), (12, 4)), ((12, 5), (12, 4, 1))])
def test_sequences_take_one_label_per_position(labels, right):
    tagger = keras.Sequential([keras.Input((4, 2)), keras.layers.Dense(3)])
    trained = Distiller(tagger, keras.models.clone_model(tagger))
    trained.compile("sgd", Sparse(from_logits=True))
    x = np.zeros((12, 4, 2), np.float32)
    with pytest.raises(DataError, match=r"shape \('samples', 4\). Received: \(12,"):
        trained.fit(x, np.zeros(labels, int), verbose=0)
    trained.fit(x, np.zeros(right, int), verbose=0)


def test_a_dataset_without_batches(models):
    with pytest.raises(DataError, match=r"single samples of shape \(4,\). Call \.batch\(32\)"):
        distiller(models).fit(tf.data.Dataset.from_tensor_slices((X, Y)), verbose=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(models, kind):
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    size = 4 if kind == "arrays" else None
    distiller(models).fit(**as_arguments(kind, X, Y), batch_size=size, callbacks=[count], verbose=0)
    assert steps == [0, 1, 2]


def test_a_dataset_is_not_read_ahead_of_training(models):
    read = []

    def batches():
        read.append(None)
        yield X, Y

    signature = (tf.TensorSpec((None, 4)), tf.TensorSpec((None,), tf.int64))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    distiller(models).fit(dataset, verbose=0)
    assert len(read) == 1


@pytest.mark.parametrize("y", [Y, Y[:, None], Y.astype(np.float32), Y > 0, tf.constant(Y)])
def test_labels_in_every_form_that_keras_takes(models, y):
    distiller(models).fit(X, y, verbose=0)


def test_labels_to_be_ignored_and_labels_of_a_loss_of_ones_own(models):
    distiller(models, Sparse(from_logits=True, ignore_class=-1)).fit(X, Y - 1, verbose=0)
    own = distiller(models, lambda y, z: tf.reduce_mean((z - tf.cast(y, z.dtype)) ** 2, -1))
    own.fit(X, Y[:, None] + 9, verbose=0)


def test_a_channel_axis_left_out_is_taken_as_keras_takes_it():
    def pooled():
        inputs = keras.Input((8, 8, 1))
        x = L.GlobalAveragePooling2D()(L.Conv2D(3, 3)(inputs))
        return keras.Model(inputs, L.Dense(3)(x))

    one = Distiller(pooled(), pooled())
    one.compile("sgd", Sparse(from_logits=True))
    one.fit(np.ones((4, 8, 8), np.float32), Y[:4], verbose=0)
    with pytest.raises(ShapeMismatchError, match=r"Received: \(4, 10, 10, 1\)"):
        one.fit(np.ones((4, 10, 10, 1), np.float32), Y[:4], verbose=0)


@pytest.mark.parametrize("kind", ["arrays", "sequence"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_and_nothing_is_trained(models, kind, value):
    x = X.copy()
    x[2, 1] = value
    made = distiller(models)
    before = made.student.get_weights()
    with pytest.raises(DataError, match=r"NaN or infinity in 1 of \d+ samples, first in sample 2"):
        made.fit(**as_arguments(kind, x, Y), verbose=0)
    for then, now in zip(before, made.student.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


def test_masked_positions_may_hold_anything():
    layers = [L.Masking(-1.0, input_shape=(3, 2)), L.Dense(3)]
    student = keras.Sequential(layers, name="student")
    x = np.full((4, 3, 2), np.nan, np.float32)
    assert check_first_batch(student, x) is x
