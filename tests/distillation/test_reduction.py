"""The hard-label loss is reduced as Keras reduces it: the student's own evaluate and fit say so."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.losses import SoftTargets
from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller
from kdtflite.errors import ConfigurationError, ShapeMismatchError

L = keras.layers
VOID = 255


def sparse(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def segmenter(seed, size=(6, 4)):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((*size, 2))
    x = L.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, L.Conv2D(3, 1, bias_initializer="normal")(x))


def tagger(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(9, 4, mask_zero=True, embeddings_initializer="normal")(inputs)
    return keras.Model(inputs, L.Dense(3, kernel_initializer="normal")(x))


@pytest.fixture
def maps():
    """Ten images of which some have few labeled pixels, one has none, and one has all."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (10, 6, 4, 2)).astype(np.float32)
    y = rng.integers(0, 3, (10, 6, 4))
    share = np.linspace(0, 1, 10)[:, None, None]
    return x, np.where(rng.uniform(size=y.shape) < share, y, VOID)


@pytest.fixture
def sentences():
    rng = np.random.default_rng(4)
    words = rng.integers(1, 9, (10, 5))
    for row, length in enumerate([5, 1, 2, 1, 5, 3, 1, 1, 4, 5]):
        words[row, length:] = 0
    return words, rng.integers(0, 3, (10, 5))


def assert_trains_as_keras(build, x, y, loss, sample_weight=None):
    """Compares loss, evaluation and weights after two epochs of uneven batches."""
    student, plain = build(1), build(1)
    distiller = Distiller(student, build(2), losses=[], hard_label_weight=1.0)
    found = {}
    for name, model in (("distiller", distiller), ("keras", plain)):
        model.compile(keras.optimizers.SGD(0.1), loss)
        before = model.evaluate(x, y, 4, 0, sample_weight)
        history = model.fit(
            x, y, 4, 2, 0, sample_weight=sample_weight, shuffle=False, validation_data=(x, y)
        )
        found[name] = [before, *history.history["loss"], *history.history["val_loss"]]
    np.testing.assert_allclose(found["distiller"], found["keras"], rtol=2e-5)
    for one, other in zip(student.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("weighted", ["not", "pixels", "pixels with an axis"])
def test_void_pixels_of_maps(maps, weighted):
    x, y = maps
    y[0, 0, 0] = 1  # Keras gives NaN for a batch without labels, and this one has them anyway
    weight = np.random.default_rng(0).uniform(0, 2, y.shape).astype(np.float32)
    weight = {"not": None, "pixels": weight, "pixels with an axis": weight[..., None]}[weighted]
    assert_trains_as_keras(segmenter, x, y, sparse(ignore_class=VOID), weight)


@pytest.mark.parametrize("weighted", ["not", "samples", "positions"])
def test_masked_positions_of_sequences(sentences, weighted):
    words, tags = sentences
    weight = np.random.default_rng(0).uniform(0, 2, tags.shape).astype(np.float32)
    weight = {"not": None, "samples": weight[:, :1], "positions": weight}[weighted]
    assert_trains_as_keras(tagger, words, tags, sparse(), weight)


def test_masked_positions_of_which_some_are_void(sentences):
    words, tags = sentences
    tags = np.where(np.random.default_rng(1).uniform(size=tags.shape) < 0.3, -1, tags)
    assert_trains_as_keras(tagger, words, tags, sparse(ignore_class=-1))


def test_void_samples(data, models):
    x, y, weight = data
    y[::3] = VOID
    assert_trains_as_keras(
        lambda seed: models.student(seed=seed), x, y, sparse(ignore_class=VOID), weight
    )


def test_a_single_map_of_yes_or_no_is_weighed_by_pixel():
    def build(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4, 4, 1))
        return keras.Model(inputs, L.Conv2D(1, 3, padding="same")(inputs))

    rng = np.random.default_rng(2)
    x, y = rng.normal(0, 1, (6, 4, 4, 1)).astype(np.float32), rng.integers(0, 2, (6, 4, 4))
    weight = rng.uniform(0, 2, y.shape).astype(np.float32)
    student = build(1)
    distiller = Distiller(student, build(2), losses=[])
    distiller.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    z = np.float64(student.predict(x, verbose=0))[..., 0]
    cross_entropy = np.logaddexp(0, z) - y * z
    np.testing.assert_allclose(distiller.evaluate(x, y, 4, 0), cross_entropy.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        distiller.evaluate(x, y, 4, 0, weight), (weight * cross_entropy).mean(), rtol=1e-5
    )


def softmax_loss(y, z):
    return keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True)


class Scalar(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return tf.reduce_mean(softmax_loss(y_true, y_pred))


@pytest.mark.parametrize(
    "loss",
    [
        lambda y, z: tf.reduce_mean(softmax_loss(y, z)),
        Scalar(),
        # One value per class, of three classes: the batch is reduced, too.
        lambda y, z: tf.reduce_mean(tf.abs(tf.one_hot(tf.cast(y[:, 0], tf.int32), 3) - z), axis=0),
    ],
    ids=["function", "class", "value per class"],
)
def test_losses_that_reduce_the_batch_themselves(data, models, loss):
    x, y, weight = data
    assert_trains_as_keras(lambda seed: models.student(seed=seed), x, y, loss)
    distiller = Distiller(models.student(), models.teacher())
    distiller.compile("sgd", loss)
    with pytest.raises(ConfigurationError, match=r"one number for a whole batch.*one value per"):
        distiller.fit(x, y, sample_weight=weight, verbose=0)
    semi = SemiSupervisedDistiller(models.student(), models.teacher())
    semi.compile("sgd", loss)
    with pytest.raises(ConfigurationError, match="cannot leave out some samples"):
        semi.fit(x, np.where(np.arange(21) % 2, y, -1), verbose=0)


def test_a_loss_without_a_name_is_described_all_the_same(data, models):
    x, y, _ = data

    class Nameless:
        def __call__(self, y_true, y_pred):
            return softmax_loss(y_true, y_pred)

    distiller = Distiller(models.student(), models.teacher())
    distiller.compile("sgd", Nameless())
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()
    own = keras.losses.MeanSquaredError(reduction="sum")
    own.name = None
    with pytest.raises(ConfigurationError, match="The loss MeanSquaredError sums"):
        distiller.compile("sgd", own)


def soften(z, temperature):
    return log_softmax(np.float64(z) / temperature, axis=-1)


@pytest.mark.parametrize("weighted", [False, True])
def test_void_pixels_leave_the_teachers_terms_too(maps, weighted):
    x, y = maps
    weight = np.random.default_rng(0).uniform(0, 2, y.shape).astype(np.float32)
    student, teacher = segmenter(1), segmenter(2)
    distiller = Distiller(student, teacher, losses=[SoftTargets(2.0)], hard_label_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.0), sparse(ignore_class=VOID))
    got = distiller.train_on_batch(x, y, weight if weighted else None, return_dict=True)
    log_p, log_q = (soften(model.predict(x, verbose=0), 2.0) for model in (teacher, student))
    divergence = 4 * (np.exp(log_p) * (log_p - log_q)).sum(-1)
    divergence = divergence * (weight if weighted else 1.0)
    np.testing.assert_allclose(got["soft_targets_loss"], divergence[y != VOID].mean(), rtol=1e-5)


def test_void_samples_leave_the_teachers_terms_too(data, models):
    x, y, _ = data
    y[::3] = VOID

    class Numbered(DistillationLoss):
        default_weight = 1.0

        def compute(self, step):
            return tf.range(tf.shape(step.student.logits)[0], dtype=tf.float32)

    distiller = Distiller(models.student(), models.teacher(), losses=[Numbered(name="numbers")])
    distiller.compile("sgd", sparse(ignore_class=VOID))
    got = distiller.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(got["numbers_loss"], np.arange(21)[y != VOID].mean(), rtol=1e-6)


def test_a_batch_without_any_label_adds_nothing(maps):
    x, y = maps
    distiller = Distiller(segmenter(1), segmenter(2))
    distiller.compile(keras.optimizers.SGD(0.1), sparse(ignore_class=VOID))
    before = distiller.get_weights()
    got = distiller.train_on_batch(x, np.full_like(y, VOID), return_dict=True)
    assert got["hard_labels_loss"] == got["soft_targets_loss"] == 0.0
    for one, other in zip(before, distiller.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("per_sample", [True, False])
def test_weights_of_pixels_weigh_every_term(maps, per_sample):
    x, y = maps
    y = np.where(y == VOID, 0, y)
    weight = np.random.default_rng(0).uniform(0, 2, (10, 1, 1) if per_sample else y.shape)
    weight = np.float32(weight)
    student, teacher = segmenter(1), segmenter(2)
    distiller = Distiller(student, teacher, losses=[SoftTargets(2.0)], hard_label_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.0), sparse())
    given = weight[:, 0, 0] if per_sample else weight
    got = distiller.fit(x, y, 4, verbose=0, sample_weight=given, shuffle=False).history
    z_s, z_t = (model.predict(x, verbose=0) for model in (student, teacher))
    hard = -np.take_along_axis(soften(z_s, 1.0), y[..., None], -1)[..., 0]
    log_p, log_q = soften(z_t, 2.0), soften(z_s, 2.0)
    divergence = 4 * (softmax(np.float64(z_t) / 2, -1) * (log_p - log_q)).sum(-1)
    np.testing.assert_allclose(got["hard_labels_loss"][0], (weight * hard).mean(), rtol=1e-5)
    np.testing.assert_allclose(got["soft_targets_loss"][0], (weight * divergence).mean(), rtol=1e-5)


def test_weights_of_another_shape_are_refused(maps):
    x, y = maps
    distiller = Distiller(segmenter(1), segmenter(2))
    distiller.compile("sgd", sparse())
    with pytest.raises(ShapeMismatchError, match=r"per position, shape \(None, 6, 4\)\. Received"):
        distiller.fit(x, np.zeros_like(y), sample_weight=np.ones((10, 5, 4)), verbose=0)
