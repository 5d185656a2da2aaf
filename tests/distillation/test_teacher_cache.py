"""What cache_teacher writes is what the teacher gives for the very views that are trained on."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.data.augment import Augmentation
from kdtflite.data.splits import Split
from kdtflite.distillation.teachers.cache import tables, writing
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.teachers.cache.writing import cache_teacher
from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.teachers.model import ModelTeacher

L = keras.layers
N = 37
X = np.random.default_rng(0).normal(0, 1, (N, 6, 6, 1)).astype(np.float32)
Y = np.arange(N)
W = np.linspace(0.5, 2, N).astype(np.float32)
MOVED = Augmentation(shift=2.0, rotation=15.0, flip=True)


def image_teacher(softmax=False):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 1))
    x = L.Conv2D(4, 3, activation="relu", name="maps")(inputs)
    x = L.GlobalAveragePooling2D(name="pooled")(x)
    activation = "softmax" if softmax else None
    return keras.Model(inputs, L.Dense(3, name="logits", activation=activation)(x), name="big")


def stretched(sample, seed):
    return sample * tf.random.stateless_uniform((), seed, 0.5, 2.0)


def stream():
    return tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(7)


def seen(cache, data, **options):
    """Returns epochs' batches by row: inputs, logits, features, label, weight."""
    options = {"batch_size": 8, "drop_remainder": False, **options}
    for taught, y, *weight in cache.batches(data, **options):
        yield taught, y.numpy(), *weight


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(writing, "_SHARD_SAMPLES", 16)


@pytest.mark.parametrize(("mapped", "dtype"), [(False, "float32"), (True, "float16")])
@pytest.mark.parametrize(("views", "augmentation"), [(1, None), (3, MOVED), (2, stretched)])
@pytest.mark.parametrize("data", [(X, Y, W), "stream"])
def test_the_teacher_run_on_the_batches_gives_what_is_stored(
    tmp_path, monkeypatch, mapped, dtype, views, augmentation, data
):
    monkeypatch.setattr(tables, "_IN_MEMORY", 0 if mapped else 2**30)
    data = stream() if data == "stream" else data
    model = image_teacher()
    cache = cache_teacher(
        model,
        data,
        tmp_path / "cache",
        views=views,
        augmentation=augmentation,
        layers=["maps", "logits"],
        dtype=dtype,
        batch_size=5,
        seed=11,
    )
    live = ModelTeacher(model, outputs="logits")
    live.tap(["maps", "logits"])
    cache.tap(["maps", "logits"])
    tolerance = 1e-5 if dtype == "float32" else 2e-3
    epochs = views + 1
    rows = []
    for taught, y, weight in seen(cache, data, epochs=epochs):
        expected = live.observe(taught.inputs)
        given = cache.observe(taught)
        assert given.logits.dtype == tf.float32
        np.testing.assert_allclose(given.logits, expected.logits, atol=tolerance)
        for path in ("maps", "logits"):
            np.testing.assert_allclose(
                given.features[path], expected.features[path], atol=tolerance
            )
        np.testing.assert_array_equal(weight, W[y])
        if augmentation is None:
            np.testing.assert_array_equal(taught.inputs, X[y])
        rows.append((y, np.asarray(taught.inputs)))
    order = np.concatenate([y for y, _ in rows]).reshape(epochs, N)
    inputs = np.concatenate([x for _, x in rows]).reshape(epochs, N, 6, 6, 1)
    sorted_inputs = np.stack([x[np.argsort(o)] for x, o in zip(inputs, order, strict=True)])
    # Epoch `views` shows the first view again, in another order.
    np.testing.assert_array_equal(np.sort(order), np.tile(Y, (epochs, 1)))
    assert not np.array_equal(order[0], order[-1])
    np.testing.assert_array_equal(sorted_inputs[-1], sorted_inputs[0])
    for view in range(1, views):
        moved = np.abs(sorted_inputs[view] - sorted_inputs[0]).max(axis=(1, 2, 3)) > 1e-3
        assert moved.mean() > 0.9


def test_views_do_not_depend_on_how_many_samples_or_views_there_are(tmp_path):
    model = image_teacher()
    options = {"augmentation": MOVED, "seed": 5}
    whole = cache_teacher(model, (X, Y), tmp_path / "whole", views=3, **options)
    part = cache_teacher(model, (X[:10], Y[:10]), tmp_path / "part", views=2, **options)
    streamed = cache_teacher(model, stream(), tmp_path / "stream", views=3, **options)

    def second_view(cache, data):
        batches = cache.batches(
            data, batch_size=10, first_epoch=1, epochs=2, shuffle=False, drop_remainder=False
        )
        return next(iter(batches))[0].inputs.numpy()

    expected = second_view(whole, (X, Y))
    np.testing.assert_array_equal(second_view(part, (X[:10], Y[:10])), expected)
    np.testing.assert_array_equal(second_view(streamed, stream()), expected)


@pytest.mark.parametrize("data", [(X, Y), "stream"])
def test_batches_begun_later_are_the_tail_of_the_whole(tmp_path, data):
    data = stream() if data == "stream" else data
    cache = cache_teacher(
        image_teacher(), data, tmp_path / "c", views=2, augmentation=MOVED, batch_size=8
    )

    def labels(first, seed=1):
        keras.utils.set_random_seed(first)  # the program's own seed has no part in it
        return [y for _, y, *_ in seen(cache, data, first_epoch=first, epochs=4, seed=seed)]

    whole, tail = labels(0), labels(2)
    assert (len(whole), len(tail)) == (20, 10)
    for expected, got in zip(whole[10:], tail, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert not np.array_equal(np.concatenate(labels(0, seed=2)), np.concatenate(whole))


def test_a_softmax_teacher_is_cached_in_log_space(tmp_path):
    model = image_teacher(softmax=True)
    cache = cache_teacher(model, Split(X, Y), tmp_path / "c")
    assert cache.outputs == "probabilities"
    taught, y = next(iter(cache.batches(Split(X, Y), batch_size=N)))
    np.testing.assert_allclose(np.exp(cache(taught)), model(X[y]), rtol=1e-5)


def test_several_inputs_by_name(tmp_path):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model({"a": a, "b": b}, L.Dense(2)(L.Concatenate()([b, a])), name="two")
    x = {"b": X[:, 0, :3, 0], "a": X[:, 1, :2, 0]}
    cache = cache_teacher(model, (x, Y), tmp_path / "c")
    cache.check_inputs(model)
    batches = list(cache.batches((x, Y), batch_size=6))
    assert len(batches) == cache.steps_per_epoch(6) == 6
    for taught, y in batches:
        np.testing.assert_array_equal(taught.inputs["a"], x["a"][y])
        np.testing.assert_allclose(taught.logits, model(taught.inputs), atol=1e-6)


def test_a_python_function_is_cached(tmp_path):
    def teach(images):
        return images.reshape(len(images), -1)[:, :4] * 3

    teacher = CallableTeacher(teach, fingerprint="thrice")
    cache = cache_teacher(teacher, (X, Y), tmp_path / "c", batch_size=10)
    assert cache.output_shape == (None, 4)
    taught, y = next(iter(cache.batches((X, Y), batch_size=N)))
    np.testing.assert_array_equal(taught.logits, X[y].reshape(N, -1)[:, :4] * np.float32(3))


def test_samples_without_labels_make_batches_of_samples_alone(tmp_path):
    cache = cache_teacher(image_teacher(), X, tmp_path / "c")
    (element,) = cache.batches(X, batch_size=N)
    x, y, weight = keras.utils.unpack_x_y_sample_weight(element)
    assert y is None
    assert weight is None
    assert x.logits.shape == (N, 3)


def test_the_manifest_says_what_was_written(tmp_path):
    cache_teacher(
        image_teacher(), (X, Y), tmp_path / "c", views=2, augmentation=MOVED, layers=["pooled"]
    )
    said = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert (said["teacher"], said["samples"], said["views"]) == ("big", N, 2)
    moved = {"shift": 2.0, "rotation": 15.0, "zoom": 0.0, "flip": True, "crop": 0}
    assert said["augmentation"] == moved
    assert said["shapes"] == {"logits": [3], "features-0": [4]}
    assert [(s["view"], s["first"], s["samples"]) for s in said["shards"]] == [
        (view, first, samples) for view in (0, 1) for first, samples in ((0, 16), (16, 16), (32, 5))
    ]
    stored = np.load(tmp_path / "c" / "view001-00002" / "logits.npy")
    assert stored.shape == (5, 3)


def test_a_file_stays_below_the_size_asked_for(tmp_path):
    cache_teacher(image_teacher(), X, tmp_path / "c", layers=["maps"], shard_bytes=1000)
    # A sample's map is 4 x 4 x 4 float32, 256 bytes: three fit into 1,000.
    files = list((tmp_path / "c").glob("view*/features-0.npy"))
    assert len(files) == 13
    assert max(path.stat().st_size for path in files) <= 1000


def test_a_whole_cache_is_opened_not_written_again(tmp_path, monkeypatch):
    model = image_teacher()
    cache_teacher(model, (X, Y), tmp_path / "c")
    monkeypatch.setattr(writing, "write_shard", None)
    assert cache_teacher(model, (X, Y), tmp_path / "c").samples == N
    assert isinstance(TeacherCache.open(tmp_path / "c", teacher=model, data=(X, Y)), TeacherCache)


def test_the_teacher_keeps_the_taps_it_had(tmp_path):
    teacher = ModelTeacher(image_teacher())
    teacher.tap(["pooled"])
    cache_teacher(teacher, (X, Y), tmp_path / "c", layers=["maps"])
    assert set(teacher.observe(X[:2]).features) == {"pooled"}
