"""Post-training quantization: the composition, its students and their files."""

import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.quantization import (
    choose_calibration,
    correct_biases,
    equalize,
    quantize_aware,
    quantize_post_training,
)
from kdtflite.quantization.quantizers import ActivationQuantizer
from kdtflite.quantization.ranges import list_ranged_layers

L = keras.layers


def test_it_is_equalization_calibration_and_bias_correction_in_this_order(trained, digits):
    x = digits[0][:200]
    student = quantize_post_training(
        trained, x, calibration="percentile", equalize=True, correct_biases=True
    )
    by_hand = quantize_aware(equalize(trained, x), x, calibration="percentile", ranges="fixed")
    correction = correct_biases(by_hand, x)
    for one, other in zip(student.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert student.bias_correction == correction
    assert [(pair.first, pair.second) for pair in student.equalization.pairs]


def test_by_default_only_ranges_are_set(trained, digits):
    x = digits[0][:200]
    weights = trained.get_weights()
    student = kdtflite.quantize_post_training(trained, x)
    plain = quantize_aware(trained, x)
    for one, other in zip(student.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert student.equalization is None
    assert student.bias_correction is None
    assert not any(
        layer.quantizer.moving
        for layer in list_ranged_layers(student)
        if isinstance(layer.quantizer, ActivationQuantizer)
    )
    for before, after in zip(weights, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_student_converts_and_its_file_computes_what_it_does(trained, digits):
    x, _, x_test, y_test = digits
    student = quantize_post_training(trained, x[:300], equalize=True, correct_biases=True)
    file = kdtflite.convert(student, x[:100], progress=False)
    parity = kdtflite.compare(student, file, x_test)
    assert parity.largest_difference_steps <= 4
    # Steps are promised; a class may change where the two best outputs lie so close, and how often
    # they do depends on the processor that trained the model.
    outputs = np.sort(file.predict(x_test))
    margins = (outputs[:, -1] - outputs[:, -2]) / file.outputs[0].scale
    near_ties = np.mean(margins <= 2 * parity.largest_difference_steps + 0.01)
    assert parity.argmax_equal >= 1 - near_ties
    in_floats = (trained.predict(x_test, verbose=0).argmax(axis=1) == y_test).mean()
    assert (file.predict(x_test).argmax(axis=1) == y_test).mean() >= in_floats - 0.03


def test_the_best_calibration_ignores_an_outlier():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, L.Dense(3, name="out")(inputs))
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 4)).astype(np.float32)
    x[0, 0] = 200  # with all of it in the range a step is 0.8
    validation = random.normal(size=(200, 4)).astype(np.float32)
    choice = choose_calibration(model, x, validation)
    errors = {one.calibration: one.error for one in choice.tried}
    assert set(errors) == {
        "entropy",
        "mean_std",
        "min_max",
        "moving_average",
        "mse",
        "percentile",
    }
    assert [one.error for one in choice.tried] == sorted(errors.values())
    assert choice.tried[0].error < errors["min_max"] / 3
    best = quantize_post_training(model, x, calibration=choice.tried[0].calibration)
    wanted, given = model(validation).numpy(), choice.student(validation).numpy()
    np.testing.assert_array_equal(best(validation).numpy(), given)
    assert choice.tried[0].error == pytest.approx(
        np.mean((wanted - given) ** 2) / np.mean(wanted**2), rel=1e-5
    )
    assert choice.to_dict()["tried"][0] == {
        "calibration": choice.tried[0].calibration,
        "error": choice.tried[0].error,
        "accuracy": None,
    }
    assert "moving_average" in str(choice)


def test_with_labels_accuracy_decides(trained, digits):
    x, y, _, _ = digits
    choice = choose_calibration(trained, x[:200], (x[200:600], y[200:600]), correct_biases=True)
    accuracies = [one.accuracy for one in choice.tried]
    assert accuracies == sorted(accuracies, reverse=True)
    outputs = choice.student.predict(x[200:600], verbose=0)
    assert accuracies[0] == (outputs.argmax(axis=1) == y[200:600]).mean()
    assert choice.student.bias_correction.corrected


def test_wrong_arguments_are_refused(trained, digits):
    x = digits[0]
    with pytest.raises(ConfigurationError, match="entropy, mean_std, min_max"):
        quantize_post_training(trained, x, calibration="kl")
    with pytest.raises(DataError, match="Received: None"):
        quantize_post_training(trained, None)
    with pytest.raises(DataError, match="one class index per sample"):
        choose_calibration(trained, x, (x, np.zeros(3)))
