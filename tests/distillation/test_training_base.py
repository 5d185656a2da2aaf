"""Every way to train is the same Keras model: its errors, callbacks, files and conversion."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import kdtflite
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.step import CachedBatch
from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.ways.multi_task import MultiTaskDistiller
from kdtflite.distillation.ways.mutual import MutualDistiller
from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller
from kdtflite.errors import ConfigurationError, DataError, ShapeMismatchError

L = keras.layers
Sparse = keras.losses.SparseCategoricalCrossentropy
WAYS = ["distiller", "semi_supervised", "mutual", "multi_task"]
WITH_STUDENT = [way for way in WAYS if way != "mutual"]


def two_headed():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,), name="features")
    shared = L.Dense(6, "relu", name="shared")(inputs)
    return keras.Model(
        inputs, [L.Dense(3, name=name)(shared) for name in ("kind", "color")], name="student"
    )


def build(way, models, teacher=None, loss=None):
    teacher = teacher or models.teacher()
    if way == "distiller":
        trained = Distiller(models.student(), teacher)
    elif way == "semi_supervised":
        trained = SemiSupervisedDistiller(models.student(), teacher)
    elif way == "mutual":
        students = [models.student(name=name, seed=i) for i, name in enumerate(("one", "two"))]
        trained = MutualDistiller(students, teacher=teacher)
    else:
        trained = MultiTaskDistiller(two_headed(), {"kind": teacher, "color": models.teacher()})
    trained.compile("adam", loss or Sparse(from_logits=True), ["accuracy"])
    return trained


def as_labels(way, y):
    return {"kind": y, "color": y} if way == "multi_task" else y


class OwnError(Exception):
    """No error of kdtflite or TensorFlow."""


@pytest.mark.parametrize("way", WAYS)
def test_a_python_teachers_own_error_is_raised(data, models, way):
    def broken(x):
        raise OwnError("the server is down")

    teacher = CallableTeacher(broken, output_shape=(None, 3), outputs="logits")
    x, y, _ = data
    with pytest.raises(OwnError, match=r"^the server is down"):
        build(way, models, teacher).fit(x, as_labels(way, y), verbose=0)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("run", ["fit", "evaluate"])
@pytest.mark.parametrize("way", WAYS)
def test_a_label_out_of_range_in_a_dataset_is_one_sentence(data, models, way, run, deterministic):
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    x, y, _ = data
    y = np.where(np.arange(21) == 9, 7, y)
    batches = tf.data.Dataset.from_tensor_slices((x, as_labels(way, y))).batch(7)
    with pytest.raises(DataError, match=r"Labels out of range.*Expected 0 to 2.*Received: 7\."):
        getattr(build(way, models), run)(batches, verbose=0)


@pytest.mark.parametrize("way", WAYS)
def test_keras3_callbacks_see_every_run(data, models, way):
    x, y, _ = data
    seen = []

    class Note(keras3.callbacks.Callback):
        def on_train_end(self, logs=None):
            seen.append("fit")

        def on_test_end(self, logs=None):
            seen.append("evaluate")

        def on_predict_end(self, logs=None):
            seen.append("predict")

    trained = build(way, models)
    trained.fit(x, as_labels(way, y), callbacks=[Note()], verbose=0)
    trained.evaluate(x, as_labels(way, y), callbacks=[Note()], verbose=0)
    trained.predict(x, callbacks=[Note()], verbose=0)
    assert seen == ["fit", "evaluate", "predict"]


@pytest.mark.parametrize("way", WITH_STUDENT)
def test_the_saved_file_is_the_students(data, models, tmp_path, way):
    trained = build(way, models)
    trained.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", compile=False)
    for one, other in zip(
        tf.nest.flatten(loaded(data[0])), tf.nest.flatten(trained.student(data[0])), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", WITH_STUDENT)
def test_the_student_is_converted(data, models, way):
    trained = build(way, models)
    assert trained.trained_model is trained.student
    lite = kdtflite.convert(trained, data[0])
    assert len(lite.outputs) == len(trained.student.outputs)


def test_several_students_are_saved_and_converted_one_by_one(data, models, tmp_path):
    trained = build("mutual", models)
    for run in (
        lambda: trained.save(tmp_path / "m.keras"),
        lambda: kdtflite.convert(trained, data[0]),
        lambda: trained.trained_model,
    ):
        with pytest.raises(ConfigurationError, match=r"2 students.*\.students\[0\]"):
            run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_the_first_batch_is_checked(data, models, way):
    x, y, _ = data
    trained = build(way, models)
    with pytest.raises(DataError, match=r"Labels out of range.*Received: 7\."):
        trained.fit(x, as_labels(way, np.full(21, 7)), verbose=0)
    with pytest.raises(ShapeMismatchError, match=r"Expected shape \(None, 4\). Received: \(21, 3"):
        trained.fit(x[:, :3], as_labels(way, y), verbose=0)
    unbatched = tf.data.Dataset.from_tensor_slices((x, as_labels(way, y)))
    with pytest.raises(DataError, match=r"single samples of shape \(4,\)"):
        trained.fit(unbatched, verbose=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("run", ["fit", "evaluate"])
def test_missing_labels_are_one_sentence(data, models, way, run):
    with pytest.raises(DataError, match="labels"):
        getattr(build(way, models), run)(data[0], verbose=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_cached_batch_is_evaluated_by_its_inputs(data, models, way):
    x, y, _ = data
    trained = build(way, models)
    cached = CachedBatch(x, np.zeros((21, 3), np.float32), {})
    batches = tf.data.Dataset.from_tensors((cached, as_labels(way, y)))
    assert trained.evaluate(batches, verbose=0) == pytest.approx(
        trained.evaluate(x, as_labels(way, y), 21, verbose=0)
    )


@pytest.mark.parametrize("way", WAYS)
def test_generators_and_sequences_are_trained_on_whole(data, models, way):
    x, y, _ = data

    class Batches(keras.utils.Sequence):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            part = slice(7 * i, 7 * i + 7)
            return x[part], as_labels(way, y[part])

    steps = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(1))
    trained = build(way, models)
    trained.fit(Batches(), callbacks=count, verbose=0)
    trained.fit((Batches()[i] for i in range(3)), callbacks=count, verbose=0)
    assert len(steps) == 6


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_saved_and_loaded(data, models, tmp_path, way):
    x, y, _ = data
    one, other = build(way, models), build(way, models)
    one.fit(x, as_labels(way, y), verbose=0)
    for name in ("w.weights.h5", "w.h5", "w.ckpt"):
        one.save_weights(tmp_path / name)
        other.set_weights([np.zeros_like(weight) for weight in other.get_weights()])
        other.load_weights(tmp_path / name)
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", WAYS)
def test_the_summary_counts_the_students_alone(models, way):
    trained = build(way, models)
    lines = []
    trained.summary(print_fn=lines.append)
    assert f"Total params: {trained.count_params()}" in "\n".join(lines)
    students = trained.students if way == "mutual" else [trained.student]
    assert trained.count_params() == sum(student.count_params() for student in students)
