import json

import numpy as np
import pytest

import kdtflite.evaluation.parity as parity_module
from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.evaluation import compare


def test_differences_are_counted_in_steps_of_the_file(monkeypatch, student, int8_file, samples):
    step = int8_file.outputs[0].scale
    ours = np.tile(np.float32([[4, 3, 0, 0]]), (3, 1)) * step
    theirs = ours.copy()
    theirs[0, 0] -= 2 * step  # 2 steps; the second class is now the highest
    theirs[1, 3] += 1.25 * step  # 1.25 steps: rounds to 1
    given = iter([ours, theirs])
    monkeypatch.setattr(parity_module, "predict", lambda *a, **k: next(given))
    parity = compare(student, int8_file, samples[:3])
    assert parity.samples == 3
    assert parity.argmax_equal == pytest.approx(2 / 3)
    assert parity.largest_difference_steps == pytest.approx(2)
    assert parity.largest_difference == pytest.approx(2 * step)
    assert parity.mean_difference_steps == pytest.approx(3.25 / 12)
    assert parity.histogram == {0: 10, 1: 1, 2: 1}
    assert json.loads(json.dumps(parity.to_dict()))["histogram"] == {"0": 10, "1": 1, "2": 1}
    assert "2.00 steps at most" in str(parity)


def test_a_float_file_is_the_keras_model_again(student, float_file, samples):
    parity = compare(student, float_file, samples)
    assert parity.argmax_equal == 1.0
    assert parity.largest_difference < 1e-5
    assert (parity.step, parity.largest_difference_steps, parity.histogram) == (None, None, {})
    assert "at most" in str(parity)


@pytest.mark.parametrize(("xnnpack", "kernels"), [(True, "XNNPACK"), (False, "built-in")])
def test_an_int8_file_is_close_and_names_its_kernels(student, int8_file, samples, xnnpack, kernels):
    parity = compare(student, int8_file, samples, xnnpack=xnnpack)
    assert parity.kernels == kernels
    assert parity.argmax_equal > 0.9
    assert parity.step == int8_file.outputs[0].scale
    assert sum(parity.histogram.values()) == 64 * 4
    assert max(parity.histogram) == round(parity.largest_difference_steps) < 20


def test_a_single_output_compares_decisions(convert_plainly):
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    parity = compare(model, convert_plainly(model, x), x)
    # An argmax over one column would be 1.0 whatever the outputs.
    assert 0.9 < parity.argmax_equal <= 1.0
    opposite = keras.models.clone_model(model)
    opposite.set_weights([-w for w in model.get_weights()])
    assert compare(opposite, convert_plainly(model), x).argmax_equal < 0.1


def test_models_of_other_outputs_are_refused(float_file, samples, student):
    import tf_keras as keras

    other = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    with pytest.raises(ShapeMismatchError, match=r"\(64, 3\) and \(64, 4\)"):
        compare(other, float_file, samples)
    broken = keras.models.clone_model(student)
    broken.set_weights([w * np.nan for w in student.get_weights()])
    with pytest.raises(DataError, match="from the Keras model"):
        compare(broken, float_file, samples)
