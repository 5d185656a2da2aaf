"""A quantization-aware student without ranges gets them from the first batches of fit."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation import Distiller
from kdtflite.models import load_model
from kdtflite.quantization import quantize_aware
from kdtflite.quantization.ranges import read_input_ranges

CrossEntropy = keras.losses.SparseCategoricalCrossentropy


@pytest.fixture
def x():
    # Sorted: the first batches do not hold the greatest value.
    return np.linspace(-1.0, 3.0, 96 * 4, dtype=np.float32).reshape(96, 4)


def build_distiller(student, models):
    distiller = Distiller(student, models.teacher())
    # Without a learning rate and without an epoch's end, only calibration sets the input range.
    distiller.compile(keras.optimizers.SGD(0.0), CrossEntropy(from_logits=True))
    return distiller


@pytest.mark.parametrize("kind", ["arrays", "tensors", "dataset", "generator", "sequence"])
def test_it_is_calibrated_on_the_first_batches_and_says_so(x, models, capsys, kind):
    y = np.zeros(96, int)
    seen = []

    class Batches(keras.utils.Sequence):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]

    def generator():
        for i in range(12):
            seen.append(i)
            yield Batches()[i]

    arguments = {
        "arrays": {"x": x, "y": y, "batch_size": 8, "shuffle": False},
        "tensors": {"x": tf.constant(x), "y": tf.constant(y), "batch_size": 8, "shuffle": False},
        "dataset": {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(8)},
        "generator": {"x": generator()},
        "sequence": {"x": Batches(), "shuffle": False},
    }[kind]
    student = quantize_aware(models.student())
    assert not student.quantization.calibrated
    ranges, steps = [], []

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            ranges.append(read_input_ranges(student)["features"])

        def on_train_batch_end(self, batch, logs=None):
            steps.append(batch)

    distiller = build_distiller(student, models)
    distiller.fit(**arguments, callbacks=[Look()], verbose=0)
    assert student.quantization.calibrated
    # Eight batches of eight: the first 64 of 96 samples.
    np.testing.assert_allclose(ranges, [(-1.0, x[63].max())], rtol=1e-6)
    assert "calibrating on the first 8 batches" in capsys.readouterr().err
    assert len(steps) == 12  # nothing was lost to calibration
    assert kind != "generator" or seen == list(range(12))


def test_a_generator_without_end_is_not_exhausted(x, models):
    def endless():
        while True:
            yield x[:8], np.zeros(8, int)

    student = quantize_aware(models.student())
    distiller = build_distiller(student, models)
    distiller.fit(endless(), steps_per_epoch=3, epochs=2, verbose=0)
    assert int(distiller.optimizer.iterations) == 6
    assert student.quantization.calibrated


def test_ranges_that_were_set_are_left_alone(x, models, capsys):
    student = quantize_aware(models.student(), 2 * x)
    before = [weight.numpy() for weight in student.weights]
    distiller = build_distiller(student, models)
    capsys.readouterr()
    distiller.fit(x[:8], np.zeros(8, int), initial_epoch=1, verbose=0)
    for one, other in zip(student.weights, before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "calibrating" not in capsys.readouterr().err


def test_ranges_that_were_loaded_are_left_alone(x, models, tmp_path, capsys):
    trained = quantize_aware(models.student(), 2 * x)
    trained.save_weights(tmp_path / "trained.h5")
    student = quantize_aware(models.student())
    student.load_weights(tmp_path / "trained.h5")
    assert student.quantization.calibrated
    build_distiller(student, models).fit(x[:8], np.zeros(8, int), initial_epoch=1, verbose=0)
    assert "calibrating" not in capsys.readouterr().err
    for one, other in zip(student.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_float_student_is_left_alone(x, models, capsys):
    build_distiller(models.student(), models).fit(x, np.zeros(96, int), verbose=0)
    assert "calibrating" not in capsys.readouterr().err


def test_resumed_quantization_aware_training_equals_uninterrupted(x, models, tmp_path):
    y = np.arange(96) % 3

    def trained(first, last, load=None, seed=1):
        student = quantize_aware(models.student(norm=True, seed=seed), x if load is None else None)
        distiller = Distiller(student, models.teacher())
        distiller.compile(keras.optimizers.Adam(0.01), CrossEntropy(from_logits=True))
        if load:
            distiller.optimizer.build(distiller.trainable_variables)
            distiller.load_weights(load)
        distiller.fit(
            x, y, shuffle=False, initial_epoch=first, epochs=last, verbose=0, batch_size=32
        )
        return distiller

    whole = trained(0, 4)
    half = trained(0, 2)
    half.save_weights(tmp_path / "half.weights.h5")
    rest = trained(2, 4, load=tmp_path / "half.weights.h5", seed=4)
    for one, other in zip(rest.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_the_regularization_of_a_quantization_aware_student_is_in_the_loss(x, models):
    student = quantize_aware(models.student(l2=0.05), x)
    weights = student.get_layer("quant_student_hidden").weights
    kernel = next(w for w in weights if w.name.endswith("/kernel:0")).numpy()
    distiller = build_distiller(student, models)
    logs = distiller.train_on_batch(x, np.zeros(96, int), return_dict=True)
    np.testing.assert_allclose(
        logs["regularization_loss"], 0.05 * np.square(kernel).sum(), rtol=1e-5
    )


def test_evaluation_changes_no_range(x, models):
    student = quantize_aware(models.student(norm=True), x)
    distiller = build_distiller(student, models)
    before = student.get_weights()
    distiller.evaluate(3 * x, np.zeros(96, int), verbose=0)
    distiller.predict(3 * x, verbose=0)
    for one, other in zip(student.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ending", [".keras", ".h5", ""])
def test_a_quantization_aware_student_is_saved_where_it_can_be_loaded(x, models, tmp_path, ending):
    student = quantize_aware(models.student(), x)
    distiller = build_distiller(student, models)
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / f"best{ending}"))
    distiller.fit(x, np.zeros(96, int), callbacks=[checkpoint], verbose=0)
    loaded = load_model(tmp_path / f"best{ending}")
    np.testing.assert_allclose(loaded(x), student(x), atol=1e-6)
    assert loaded.quantization.calibrated


def test_a_dataset_of_keras_3_sets_the_ranges(x, models):
    class Batches(keras3.utils.PyDataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return x[8 * i : 8 * i + 8], np.zeros(8, int)

    student, other = quantize_aware(models.student()), quantize_aware(models.student())
    build_distiller(student, models).fit(Batches(), verbose=0, shuffle=False)
    build_distiller(other, models).fit(x, np.zeros(96, int), batch_size=8, verbose=0, shuffle=False)
    assert student.quantization.calibrated
    for given, expected in zip(student.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
