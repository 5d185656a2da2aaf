"""Views of a teacher cache: every epoch its own, given as arrays, and stored on request."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.augment import Augmentation
from kdtflite.distillation import Distiller
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.teachers.cache.writing import cache_teacher
from kdtflite.errors import ConfigurationError, DataError, OutputExistsError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (13, 6, 6, 1)).astype(np.float32)
Y = np.arange(13)
GIVEN = RNG.normal(0, 1, (3, 13, 6, 6, 1)).astype(np.float32)
MOVED = Augmentation(shift=2.0, rotation=15.0, flip=True)


def teacher():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 1))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(inputs)), name="big")


def read_epoch(batches):
    """Returns inputs, logits and labels of one reading, by label."""
    parts = [(b.inputs.numpy(), b.logits.numpy(), y.numpy()) for b, y in batches]
    inputs, logits, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = labels.argsort()
    return inputs[order], logits[order], labels


@pytest.mark.parametrize("first", [0, 2])
def test_every_reading_without_epochs_is_the_next_epoch(tmp_path, first):
    cache = cache_teacher(teacher(), (X, Y), tmp_path / "c", views=3, augmentation=MOVED)
    options = {"batch_size": 5, "drop_remainder": False, "seed": 4}
    batches = cache.batches((X, Y), first_epoch=first, **options)
    assert int(batches.cardinality()) == 3
    for epoch in range(first, first + 4):
        alone = cache.batches((X, Y), first_epoch=epoch, epochs=epoch + 1, **options)
        for one, other in zip(read_epoch(batches), read_epoch(alone), strict=True):
            np.testing.assert_array_equal(one, other)
    numbered = [read_epoch(batches)[2].tolist() for _ in range(3)]
    assert len({tuple(labels) for labels in numbered}) == 3  # an order of its own, too


@pytest.mark.parametrize("steps", [None, 2])
def test_fit_shows_every_view_without_being_told(tmp_path, steps):
    cache = cache_teacher(teacher(), (X, Y), tmp_path / "c", views=3, augmentation=MOVED)

    def train(batches, **options):
        student = keras.models.clone_model(teacher())
        student.set_weights([0.1 * weight for weight in teacher().get_weights()])
        distiller = Distiller(student, cache)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.05), loss)
        distiller.fit(batches, epochs=5, verbose=0, **options)
        return student.get_weights()

    labels = Y % 3
    plain = cache.batches((X, labels), batch_size=6)
    numbered = cache.batches((X, labels), batch_size=6, epochs=5)
    options = {} if steps is None else {"steps_per_epoch": steps}
    for one, other in zip(train(plain, **options), train(numbered, steps_per_epoch=2), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stored", [False, True])
def test_views_that_were_made_elsewhere_are_taken(tmp_path, stored):
    cache = cache_teacher(teacher(), (X, Y), tmp_path / "c", views=GIVEN, store_views=stored)
    assert cache.views == 3
    again = TeacherCache.open(tmp_path / "c", data=(X, Y), views=None if stored else GIVEN)
    for each in (cache, again):
        for view in range(3):
            batches = each.batches(
                (X, Y), batch_size=5, drop_remainder=False, first_epoch=view, epochs=view + 1
            )
            inputs, logits, _ = read_epoch(batches)
            np.testing.assert_array_equal(inputs, GIVEN[view])
            np.testing.assert_allclose(logits, teacher().predict(GIVEN[view], verbose=0), atol=1e-5)
    cache_teacher(teacher(), (X, Y), tmp_path / "c", views=GIVEN, store_views=stored)  # the same
    with pytest.raises(OutputExistsError):
        cache_teacher(teacher(), (X, Y), tmp_path / "c", views=GIVEN + 1, store_views=stored)


def test_given_views_may_have_another_size_than_the_samples(tmp_path):
    large = RNG.normal(0, 1, (13, 9, 9, 1)).astype(np.float32)
    cache = cache_teacher(teacher(), (large, Y), tmp_path / "c", views=GIVEN)
    inputs, _, _ = read_epoch(cache.batches((large, Y), batch_size=5, drop_remainder=False))
    np.testing.assert_array_equal(inputs, GIVEN[0])


def test_given_views_of_several_inputs(tmp_path):
    parts = {"a": X[:, 0, :, 0], "b": X[:, 1, :, 0]}
    views = {"a": GIVEN[:, :, 0, :, 0], "b": GIVEN[:, :, 1, :, 0]}
    inputs = {name: keras.Input((6,), name=name) for name in parts}
    model = keras.Model(inputs, L.Dense(3)(L.Concatenate()([inputs["a"], inputs["b"]])))
    cache = cache_teacher(model, (parts, Y), tmp_path / "c", views=views, store_views=True)
    batches = cache.batches((parts, Y), batch_size=13, shuffle=False, first_epoch=1, epochs=2)
    ((batch, _),) = batches
    for name, array in views.items():
        np.testing.assert_array_equal(batch.inputs[name], array[1])


def stretched(sample, seed):
    return sample * tf.random.stateless_uniform((), seed, 0.5, 2.0)


@pytest.mark.parametrize("kind", ["arrays", "stream"])
@pytest.mark.parametrize("augmentation", [MOVED, stretched])
def test_stored_views_are_the_made_ones_and_need_no_function(tmp_path, kind, augmentation):
    data = (X, Y)
    if kind == "stream":
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    options = {"views": 2, "augmentation": augmentation, "seed": 7}
    made = cache_teacher(teacher(), data, tmp_path / "made", **options)
    cache_teacher(teacher(), data, tmp_path / "stored", store_views=True, **options)
    stored = TeacherCache.open(tmp_path / "stored", data=data)  # without the function
    reading = {"batch_size": 5, "drop_remainder": False, "epochs": 2}
    for one, other in zip(
        read_epoch(made.batches(data, **reading)),
        read_epoch(stored.batches(data, **reading)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(OutputExistsError, match="stored_views=False, not True"):
        cache_teacher(teacher(), data, tmp_path / "made", store_views=True, **options)


def test_views_that_cannot_be_used_are_refused(tmp_path):
    cases = [
        ({"views": GIVEN, "augmentation": MOVED}, ConfigurationError, "both"),
        ({"views": GIVEN[:, :12]}, DataError, "views of 12 samples, and 13 of samples"),
        ({"views": 1.5}, DataError, r"shape \(views, samples, \.\.\.\)"),
        ({"views": GIVEN.astype(str)}, DataError, "arrays of numbers"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message):
            cache_teacher(teacher(), (X, Y), tmp_path / "c", **options)
    stream = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    with pytest.raises(DataError, match="Expected views of the samples in arrays"):
        cache_teacher(teacher(), stream, tmp_path / "c", views=GIVEN)
    cache_teacher(teacher(), (X, Y), tmp_path / "given", views=GIVEN)
    with pytest.raises(ConfigurationError, match=r"given as arrays\. Expected the same as views="):
        TeacherCache.open(tmp_path / "given")
    with pytest.raises(DataError, match="it is of other views"):
        TeacherCache.open(tmp_path / "given", views=-GIVEN)
