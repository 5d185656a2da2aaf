"""Quantization-aware students in training: schedules, learned steps, files, and back to float."""

import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.errors import ConfigurationError, UnsupportedModelError
from kdtflite.models import load_model
from kdtflite.models.keras_internals import rename
from kdtflite.quantization import QuantizationSchedule, quantize_aware, strip
from kdtflite.quantization.layers import FoldedBatchNormalization
from kdtflite.quantization.ranges import list_ranged_layers, suspend_rounding

CrossEntropy = keras.losses.SparseCategoricalCrossentropy


def accuracy(model, x, y):
    return (model.predict(x, verbose=0).argmax(axis=1) == y).mean()


def ranges_of(model):
    return [layer.quantizer.read_range(layer.range) for layer in list_ranged_layers(model)]


def compiled(model, rate=0.003):
    model.compile(keras.optimizers.Adam(rate), CrossEntropy(from_logits=True))
    return model


@pytest.mark.parametrize(
    "calibration", ["entropy", "mean_std", "min_max", "moving_average", "mse", "percentile"]
)
def test_each_calibration_gives_ptqs_accuracy_before_the_first_step(trained, digits, calibration):
    x, _, x_test, y_test = digits
    aware = quantize_aware(trained, x[:300], calibration=calibration)
    assert accuracy(aware, x_test, y_test) >= accuracy(trained, x_test, y_test) - 0.01


@pytest.mark.parametrize("ranges", ["fixed", "learned", "moving"])
def test_every_way_to_treat_ranges_trains_and_converts_as_trained(trained, digits, ranges):
    x, y, x_test, _ = digits
    # Ranges that are learned move as far per step as the weights do, so the rate is a small one.
    aware = compiled(quantize_aware(trained, x[:300], ranges=ranges), rate=0.0003)
    before, loss_before = ranges_of(aware), aware.evaluate(x, y, verbose=0)
    aware.fit(x, y, batch_size=64, epochs=2, verbose=0)
    assert (ranges_of(aware) == before) is (ranges == "fixed")
    assert aware.evaluate(x, y, verbose=0) < 0.9 * loss_before
    lite = kdtflite.convert(aware, x[:100], progress=False)
    parity = kdtflite.compare(aware, lite, x_test)
    assert parity.argmax_equal > 0.99
    assert parity.largest_difference_steps <= 3


def test_an_unknown_choice_lists_the_known_ones(trained):
    with pytest.raises(ConfigurationError, match="fixed, learned, moving"):
        quantize_aware(trained, ranges="frozen")
    with pytest.raises(ConfigurationError, match="entropy, mean_std, min_max"):
        quantize_aware(trained, calibration="kl")


class Watch(keras.callbacks.Callback):
    """Notes the state that a schedule changes at the end of each epoch."""

    def __init__(self, student):
        super().__init__()
        self.student = student
        self.rows = []

    def on_epoch_end(self, epoch, logs=None):
        norm = next(x for x in self.student.layers if isinstance(x, FoldedBatchNormalization))
        self.rows.append((norm.moving_mean.numpy().sum(), ranges_of(self.student)[-1]))


def test_a_schedule_freezes_statistics_and_ranges_in_their_epochs(trained, digits):
    x, y, _, _ = digits
    aware = compiled(quantize_aware(trained, x[:300]))
    watch = Watch(aware)
    schedule = QuantizationSchedule(freeze_batch_norm=1, freeze_ranges=2)
    aware.fit(x[:256], y[:256], epochs=4, callbacks=[schedule, watch], verbose=0)
    means, ranges = zip(*watch.rows, strict=True)
    assert means[0] == means[1] == means[3]
    assert ranges[0] != ranges[1]
    assert ranges[1] == ranges[2] == ranges[3]
    again = Watch(aware)
    aware.fit(x[:256], y[:256], epochs=2, callbacks=[again], verbose=0)
    # Without the schedule everything moves again.
    assert again.rows[0][0] != means[-1]
    assert again.rows[0][1] != ranges[-1]


def test_before_rounding_starts_the_model_is_the_float_one(trained, digits):
    x, y, _, _ = digits
    aware = compiled(quantize_aware(trained, x[:300]), rate=0.0)
    losses = aware.fit(
        x[:256],
        y[:256],
        epochs=2,
        shuffle=False,
        callbacks=[QuantizationSchedule(start_rounding=1)],
        verbose=0,
    ).history["loss"]
    plain = compiled(strip(aware), rate=0.0)
    expected = plain.fit(x[:256], y[:256], shuffle=False, verbose=0).history["loss"][0]
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)
    assert abs(losses[1] - expected) > 1e-6


def test_a_schedule_works_through_the_distiller(trained, digits):
    x, y, _, _ = digits
    aware = quantize_aware(trained, x[:300])
    distiller = kdtflite.Distiller(aware, trained)
    distiller.compile(keras.optimizers.Adam(0.001), CrossEntropy(from_logits=True))
    watch = Watch(aware)
    schedule = QuantizationSchedule(freeze_batch_norm=1)
    distiller.fit(x[:256], y[:256], epochs=3, callbacks=[schedule, watch], verbose=0)
    assert watch.rows[0][0] == watch.rows[2][0]


def test_a_schedule_reaches_every_student_of_a_distiller(trained, digits):
    x, y, _, _ = digits
    students = [quantize_aware(trained, x[:300]) for _ in range(2)]
    for i, student in enumerate(students):
        rename(student, f"student_{i}")
    distiller = kdtflite.distillation.MutualDistiller(students)
    distiller.compile(keras.optimizers.SGD(0.01), CrossEntropy(from_logits=True))
    watches = [Watch(student) for student in students]
    schedule = QuantizationSchedule(freeze_batch_norm=1)
    distiller.fit(x[:64], y[:64], epochs=2, callbacks=[schedule, *watches], verbose=0)
    for watch in watches:
        assert watch.rows[0][0] == watch.rows[1][0]


def test_an_epoch_below_zero_is_refused():
    with pytest.raises(ConfigurationError, match="freeze_ranges from 0 up"):
        QuantizationSchedule(freeze_ranges=-1)


FILES = ["student.keras", "student.h5", "student"]


@pytest.fixture(scope="module", params=["moving", "learned"])
def saved(request, trained, digits, tmp_path_factory):
    """A folder with a trained student in every format, its outputs, and its weights later on."""
    keras.utils.set_random_seed(0)
    x, y, _, _ = digits
    folder = tmp_path_factory.mktemp(request.param)
    aware = compiled(quantize_aware(trained, x[:300], ranges=request.param))
    aware.fit(x[:256], y[:256], verbose=0)
    for name in FILES:
        aware.save(folder / name)
    outputs = aware.predict(x, verbose=0)
    compiled(aware).fit(x[:256], y[:256], epochs=2, shuffle=False, verbose=0)
    return folder, outputs, {weight.name: weight.numpy() for weight in aware.weights}


@pytest.mark.parametrize("name", FILES)
def test_a_saved_student_resumes_bit_for_bit(saved, digits, name):
    x, y, _, _ = digits
    folder, outputs, later = saved
    again = load_model(folder / name)
    np.testing.assert_array_equal(again.predict(x, verbose=0), outputs)
    assert again.quantization.calibrated
    compiled(again).fit(x[:256], y[:256], epochs=2, shuffle=False, verbose=0)
    # A SavedModel lists the weights in another order, a .keras file gives them other names.
    if name == "student":
        expected = [later[weight.name] for weight in again.weights]
    else:
        expected = list(later.values())
    assert len(expected) == len(later) == len(again.weights)
    for weight, value in zip(again.weights, expected, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_loaded_students_layers_are_accounted_for(trained, digits, tmp_path):
    aware = quantize_aware(trained, digits[0][:64])
    aware.save(tmp_path / "student.keras")
    again = load_model(tmp_path / "student.keras")
    assert {row.layer: row.how for row in again.quantization.layers} == {
        row.layer: row.how for row in aware.quantization.layers
    }


def test_stripped_it_is_float_again(trained, digits):
    x, y, _, _ = digits
    aware = compiled(quantize_aware(trained, x[:300]))
    aware.fit(x[:256], y[:256], verbose=0)
    plain = strip(aware)
    with suspend_rounding(aware):
        np.testing.assert_allclose(plain(x[:50]), aware(x[:50]), atol=1e-5)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"tf_keras"}
    assert [layer.name for layer in plain.layers] == [layer.name for layer in trained.layers]
    with pytest.raises(UnsupportedModelError, match="no fake quantization"):
        strip(plain)


def test_evaluation_moves_nothing(trained, digits):
    x, y, _, _ = digits
    for ranges in ("moving", "learned"):
        aware = compiled(quantize_aware(trained, x[:300], ranges=ranges))
        before = aware.get_weights()
        aware.evaluate(3 * x, y, verbose=0)
        aware.predict(3 * x, verbose=0)
        for one, other in zip(aware.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)
