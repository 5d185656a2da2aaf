"""Each layer of a model rounded alone."""

import json

import numpy as np
import pytest
import tf_keras as keras
from scipy.special import softmax
from scipy.stats import entropy

from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError
from kdtflite.quantization import measure_sensitivity, quantize_aware, strip

L = keras.layers


@pytest.fixture(scope="module")
def student(trained, digits):
    return quantize_aware(trained, digits[0][:300])


def measure(student, *data, **options):
    return measure_sensitivity(student, *data, progress=False, **options)


def test_every_layer_with_rounding_has_a_row_by_the_users_name(student, digits):
    found = measure(student, digits[2][:64])
    assert {(row.layer, row.kind) for row in found.layers} == {
        ("image", "InputLayer"),
        ("conv", "Conv2D"),
        ("relu", "ReLU"),
        ("depthwise", "DepthwiseConv2D"),
        ("logits", "Dense"),
    }
    changes = [row.change for row in found.layers]
    assert changes == sorted(changes, reverse=True)
    assert min(changes) > 0
    assert (found.measure, found.samples, found.accuracy) == ("kl", 64, None)


def test_all_layers_together_change_the_output_as_scipy_measures(student, digits):
    _, _, x, y = digits
    found = measure(student, x, y, samples=200)
    places = np.linspace(0, len(x) - 1, 200).astype(int)
    exact = strip(student).predict(x[places], verbose=0)
    rounded = student.predict(x[places], verbose=0)
    p, q = softmax(exact.astype(np.float64), -1), softmax(rounded.astype(np.float64), -1)
    assert found.together == pytest.approx(entropy(p, q, axis=-1).mean(), rel=1e-3)
    assert found.float_accuracy == (exact.argmax(-1) == y[places]).mean()
    assert found.accuracy == (rounded.argmax(-1) == y[places]).mean()
    assert found.float_accuracy > 0.95


def test_a_dense_layers_weights_rounded_alone_by_hand():
    kernel = np.float32([[1.0, 0.3], [-0.25, 0.1]])
    model = keras.Sequential(
        [keras.Input((2,), name="pair"), L.Dense(2, use_bias=False, name="dense")]
    )
    model.set_weights([kernel])
    x = np.float32([[1, 0], [0, 1], [1, 1]])
    # One step of 1 / 127: 0.3 is 38.1 steps, -0.25 is -31.75, 0.1 is 12.7.
    rounded = np.float64([[127, 38], [-32, 13]]) / 127
    found = measure(quantize_aware(model, x), x, measure="mse", what="weights")
    assert [row.layer for row in found.layers] == ["dense"]
    error = x @ rounded - x @ kernel
    assert found.layers[0].change == pytest.approx(np.mean(error**2), rel=1e-4)
    assert found.together == found.layers[0].change


def test_the_layer_whose_weights_are_spread_widest_is_the_costliest(trained, digits):
    kernel, bias = trained.get_layer("logits").get_weights()
    flat = trained.get_layer("flat").output
    wider = L.Concatenate(name="wider")([flat, L.Dense(1, name="zero")(flat)])
    model = keras.Model(trained.input, L.Dense(10, name="classes")(wider))
    model.get_layer("zero").set_weights([np.zeros((flat.shape[-1], 1)), np.zeros(1)])
    # It multiplies zeros only and widens the range, so that the other weights are a few steps.
    silent = np.full((1, 10), 60.0, np.float32)
    model.get_layer("classes").set_weights([np.concatenate([kernel, silent]), bias])
    x, _, x_test, y_test = digits
    found = measure(quantize_aware(model, x[:300]), x_test, y_test)
    first = found.layers[0]
    assert first.layer == "classes"
    assert first.change > 5 * found.layers[1].change
    assert first.accuracy < found.float_accuracy - 0.02
    assert all(row.accuracy > found.float_accuracy - 0.02 for row in found.layers[1:])


def test_parts_of_a_layer_count_as_the_layer_and_nested_models_by_path():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((6, 4)), L.Conv1D(4, 1, name="deep")], name="inner")
    inputs = keras.Input((6, 3), name="wave")
    x = L.Conv1D(4, 3, padding="same", name="conv")(inputs)
    x = L.LayerNormalization(name="norm")(inner(x))
    x = L.GlobalAveragePooling1D(name="pool")(x)
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="classes")(x))
    data = np.random.default_rng(0).normal(size=(40, 6, 3)).astype(np.float32)
    found = measure(quantize_aware(model, data), data)
    assert found.measure == "kl"
    assert {row.layer for row in found.layers} == {
        *("wave", "conv", "inner/deep", "norm", "pool", "classes")
    }
    assert {row.layer: row.kind for row in found.layers}["norm"] == "LayerNormalization"
    only = measure(quantize_aware(model, data), data, what="activations")
    assert "wave" in {row.layer for row in only.layers}


def test_the_student_is_the_same_afterwards(student, digits):
    x = digits[2][:32]
    before = student(x, training=False).numpy()
    weights = student.get_weights()
    measure(student, x)
    np.testing.assert_array_equal(student(x, training=False).numpy(), before)
    for old, new in zip(weights, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_results_are_plain_values_a_table_and_a_plot(student, digits):
    found = measure(student, digits[2][:32], digits[3][:32])
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["layers"][0]["layer"] == found.layers[0].layer
    assert plain["what"] == "all"
    text = str(found)
    assert "KL divergence in nats) on 32 samples" in text
    assert f"Accuracy without rounding {found.float_accuracy:.2%}" in text
    bars = found.plot().patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [x.change for x in found.layers])


def test_what_cannot_be_measured_is_refused(student, trained, digits):
    x, y = digits[2][:8], digits[3][:8]
    with pytest.raises(UnsupportedModelError, match="which has no fake quantization"):
        measure(trained, x)
    with pytest.raises(ConfigurationError, match="whose activation ranges are set"):
        measure(quantize_aware(trained), x)
    with pytest.raises(ConfigurationError, match="measure"):
        measure(student, x, measure="cosine")
    with pytest.raises(ConfigurationError, match="part of a layer"):
        measure(student, x, what="biases")
    with pytest.raises(ConfigurationError, match="samples from 1 up"):
        measure(student, x, samples=0)
    with pytest.raises(DataError, match="a class for each sample"):
        measure(student, x, y[:5])
    with pytest.raises(DataError, match="a class for each sample"):
        measure(student, x, np.eye(10)[y])
    one = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(1)])
    regression = quantize_aware(one, x)
    assert measure(regression, x).measure == "mse"
    with pytest.raises(UnsupportedModelError, match="Pass measure='mse'"):
        measure(regression, x, measure="kl")
    with pytest.raises(DataError, match="Leave them out"):
        measure(regression, x, y)
