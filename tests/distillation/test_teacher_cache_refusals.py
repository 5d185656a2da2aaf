"""A cache that is stale, damaged, incomplete or impossible is refused in a sentence."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.augment import Augmentation
from kdtflite.distillation.step import CachedBatch
from kdtflite.distillation.teachers.cache import writing
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.teachers.cache.writing import cache_teacher
from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.teachers.ensemble import EnsembleTeacher
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    OutputExistsError,
    ShapeMismatchError,
)

X = np.random.default_rng(0).normal(0, 1, (12, 4, 4, 1)).astype(np.float32)
Y = np.arange(12)


def dense(shift=0.0, shape=(4, 4, 1)):
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(name="flat"), keras.layers.Dense(3)], name="big"
    )
    model.layers[-1].bias.assign_add([shift] * 3)
    return model


def stream(x=X, batch=5):
    return tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x), int))).batch(batch)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(writing, "_SHARD_SAMPLES", 5)


@pytest.fixture
def folder(tmp_path):
    cache_teacher(dense(), (X, Y), tmp_path / "cache", layers=["flat"])
    return tmp_path / "cache"


def test_another_teacher_is_refused(folder):
    with pytest.raises(ConfigurationError, match=r"stale: it is of another teacher .*overwrite"):
        TeacherCache.open(folder, teacher=dense(shift=1e-3))
    with pytest.raises(OutputExistsError, match=r"of another teacher \('big'\). Pass overwrite"):
        cache_teacher(dense(shift=1e-3), (X, Y), folder, layers=["flat"])


def test_other_data_are_refused_and_other_labels_are_not(folder):
    other = X.copy()
    other[11, 3, 3, 0] += 1e-3
    cache = TeacherCache.open(folder, data=(X, Y))
    for refused in (other, X[:11], X.astype(np.float64), stream()):
        with pytest.raises(DataError, match=r"stale: it is of other data \(.*overwrite=True"):
            TeacherCache.open(folder, data=refused)
        with pytest.raises(DataError, match="stale"):
            cache.batches(refused, batch_size=4)
    with pytest.raises(OutputExistsError, match="cache of other data"):
        cache_teacher(dense(), (other, Y), folder, layers=["flat"])
    assert len(list(cache.batches((X.copy(), Y[::-1]), batch_size=4))) == 3


def test_other_settings_are_named(folder):
    with pytest.raises(OutputExistsError, match=r"other settings \(.*dtype=float32, not float16"):
        cache_teacher(dense(), (X, Y), folder, layers=["flat"], dtype="float16")


def test_overwrite_replaces_a_cache_and_nothing_else(folder, tmp_path):
    (folder / "notes.txt").write_text("mine")
    new = cache_teacher(dense(shift=1), (X[:7], Y[:7]), folder, overwrite=True)
    assert new.samples == 7
    assert new.layers == {}
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.glob("view*"))) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="not a teacher cache"):
        cache_teacher(dense(), (X, Y), tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), r"has 184 bytes, not 188"),
        (lambda path: path.unlink(), r"is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), r"SHA-256"),
    ],
)
def test_a_damaged_file_is_named_and_can_be_written_again(folder, harm, said):
    path = folder / "view000-00001" / "logits.npy"
    before = path.read_bytes()
    harm(path)
    with pytest.raises(DataError, match=rf"damaged: .*view000-00001/logits.npy.*{said}"):
        TeacherCache.open(folder)
    (folder / "manifest.json").unlink()
    cache_teacher(dense(), (X, Y), folder, layers=["flat"])
    assert path.read_bytes() == before


def test_an_incomplete_cache_says_what_is_missing(folder, tmp_path):
    with pytest.raises(DataError, match=r"Expected a teacher cache. Received: .*none"):
        TeacherCache.open(tmp_path / "none")
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "view000-00001")
    with pytest.raises(DataError, match=r"not complete: view 0, samples 5 to 9 is missing"):
        TeacherCache.open(folder)
    (folder / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan.json is damaged"):
        TeacherCache.open(folder)


def test_layers_that_are_not_held_list_those_that_are(folder):
    cache = TeacherCache.open(folder)
    assert cache.tap(["flat"]) == {"flat": (None, 16)}
    with pytest.raises(ConfigurationError, match=r"does not hold .* dense. It holds: flat."):
        cache.tap(["dense"])
    with pytest.raises(ConfigurationError, match=r"has no layer 'flap'"):
        cache_teacher(dense(), (X, Y), folder, layers=["flap"])


def test_plain_samples_teach_nothing(folder):
    cache = TeacherCache.open(folder)
    with pytest.raises(ConfigurationError, match=r"Train on cache.batches\(...\)"):
        cache.observe(X)
    cache.tap(["flat"])
    with pytest.raises(ConfigurationError, match=r"Pass layers=\['flat'\] to cache.batches"):
        cache.observe(CachedBatch(X, np.zeros((12, 3)), {}))


def test_a_student_of_other_inputs_is_refused(folder):
    cache = TeacherCache.open(folder)
    cache.check_inputs(dense())
    cache.check_inputs(dense(shape=(4, 4)))  # Keras adds and drops a last axis of 1
    with pytest.raises(ShapeMismatchError, match=r"\(None, 4, 4, 1\).*\(None, 5, 4, 1\)"):
        cache.check_inputs(dense(shape=(5, 4, 1)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_name_the_sample(tmp_path, value):
    x = X.copy()
    x[9] = value
    with pytest.raises(DataError, match=r"logits of the teacher 'big' hold NaN.*for sample 9\."):
        cache_teacher(dense(), (x, Y), tmp_path / "c", batch_size=4)


def test_logits_beyond_float16_name_the_sample_and_float32(tmp_path):
    x = X.copy()
    x[9] *= 1e5
    with pytest.raises(DataError, match=r"first for sample 9; float16 only reaches 65504.*float32"):
        cache_teacher(dense(), (x, Y), tmp_path / "c", dtype="float16")
    cache_teacher(dense(), (x, Y), tmp_path / "d")


def test_a_stream_that_changes_from_one_reading_to_the_next_is_refused(tmp_path):
    shuffled = stream().unbatch().shuffle(12).batch(5)
    with pytest.raises(DataError, match=r"gives the same samples .* Leave out shuffle\(\)"):
        cache_teacher(dense(), shuffled, tmp_path / "c")
    with pytest.raises(DataError, match="an endless one"):
        cache_teacher(dense(), stream().repeat(), tmp_path / "d")
    with pytest.raises(DataError, match=r"Call .batch\(32\)"):
        cache_teacher(dense(), tf.data.Dataset.from_tensor_slices(Y), tmp_path / "e")


def test_a_stream_is_compared_sample_by_sample_while_training(tmp_path):
    cache = cache_teacher(dense(), stream(), tmp_path / "c")
    other = X.copy()
    other[0] += 1
    with pytest.raises(DataError, match="stale"):
        TeacherCache.open(tmp_path / "c", data=stream(other))
    late = X.copy()
    late[10] += 1
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"no longer gives the samples .*\[10\]"
    ):
        list(cache.batches(stream(late), batch_size=4))
    for length in (X[:9], np.concatenate([X, X])):
        with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError)):
            list(cache.batches(stream(length), batch_size=4, drop_remainder=False))


def test_options_that_make_no_sense_are_refused(tmp_path):
    for options, said in [
        ({"views": 2}, r"views=2, augmentation=None"),
        ({"views": 0}, r"views=0"),
        ({"dtype": "int8"}, r"no dtype of a teacher cache 'int8'"),
        ({"batch_size": 0}, r"batch_size=0"),
        ({"worker": (2, 2)}, r"index from 0 to 1"),
        ({"augmentation": lambda sample, seed: sample @ seed}, r"does not run on a sample"),
    ]:
        with pytest.raises(ConfigurationError, match=said):
            cache_teacher(dense(), (X, Y), tmp_path / "c", **options)
    with pytest.raises(DataError, match="An Augmentation moves images"):
        cache_teacher(
            dense(shape=(4,)), X[:, 0, :, 0], tmp_path / "c", augmentation=Augmentation(flip=True)
        )
    with pytest.raises(DataError, match="of the same length"):
        cache_teacher(dense(), (X, Y[:3]), tmp_path / "c")
    with pytest.raises(ConfigurationError, match="fingerprint"):
        cache_teacher(CallableTeacher(lambda x: x[:, 0, 0]), X, tmp_path / "c")


def test_samples_that_are_no_numbers_or_read_only_once_are_refused(tmp_path):
    relu = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    blind = keras.Model(relu.input, tf.zeros_like(relu.output))  # NaN does not show in its logits
    with pytest.raises(DataError, match=r"NaN or infinity in the first 8"):
        cache_teacher(blind, np.where(X > 1, np.nan, X), tmp_path / "cache", outputs="logits")
    with pytest.raises(DataError, match=r"Received: a generator\. Make arrays of it"):
        cache_teacher(dense(), ((x, y) for x, y in stream()), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_is_no_member_of_an_ensemble(folder):
    with pytest.raises(ConfigurationError, match=r"cache_teacher\(\[first, second\]"):
        EnsembleTeacher([TeacherCache.open(folder), dense()])


def test_less_than_a_batch_is_refused(folder):
    cache = TeacherCache.open(folder)
    with pytest.raises(DataError, match=r"from 1 to the 12 samples .* Received: 13"):
        cache.batches((X, Y), batch_size=13)
    assert len(list(cache.batches((X, Y), batch_size=13, drop_remainder=False))) == 1


def test_a_function_that_made_the_views_is_asked_for_and_compared(tmp_path):
    def brighter(sample, seed):
        return sample + tf.random.stateless_uniform((), seed)

    def darker(sample, seed):
        return sample - tf.random.stateless_uniform((), seed)

    cache_teacher(dense(), (X, Y), tmp_path / "c", views=2, augmentation=brighter)
    with pytest.raises(ConfigurationError, match=r"made by a function, .*brighter"):
        TeacherCache.open(tmp_path / "c")
    TeacherCache.open(tmp_path / "c", augmentation=brighter, data=(X, Y))
    with pytest.raises(DataError, match="augmented views, differ"):
        TeacherCache.open(tmp_path / "c", augmentation=darker, data=(X, Y))
