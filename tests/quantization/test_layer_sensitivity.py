"""Sensitivity: each layer's rounding alone, against sums by hand."""

import json

import numpy as np
import pytest
import tf_keras as keras

from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError
from kdtflite.quantization import quantize_aware, sensitivity, strip
from kdtflite.quantization.layers import FakeQuantize

L = keras.layers


@pytest.fixture(scope="module")
def student():
    """Two layers; the first has weights that int8 holds exactly, the second has not."""
    inputs = keras.Input((2,), name="x")
    h = L.Dense(2, name="exact")(inputs)
    model = keras.Model(inputs, L.Dense(2, name="coarse")(h), name="two")
    model.get_layer("exact").set_weights([np.array([[1.27, -0.5], [0.03, 0.9]]), np.zeros(2)])
    model.get_layer("coarse").set_weights([np.array([[127, 0.4], [0.3, -0.45]]), np.zeros(2)])
    return quantize_aware(model, samples())


def samples():
    return np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)


def test_weights_by_hand(student):
    x = samples().astype(np.float64)
    kernel = np.array([[1.27, -0.5], [0.03, 0.9]])
    exact, rounded = np.array([[127, 0.4], [0.3, -0.45]]), np.array([[127.0, 0], [0, 0]])
    wanted = x @ kernel @ exact
    error = np.mean((x @ kernel @ rounded - wanted) ** 2) / np.mean(wanted**2)
    found = sensitivity(student, x, rounds="weights")
    assert [(row.layer, row.rounds) for row in found.layers] == [
        ("coarse", "weights"),
        ("exact", "weights"),
    ]
    coarse, fine = found.layers
    assert coarse.error == pytest.approx(error, rel=1e-4)
    assert fine.error < 1e-9
    assert found.together.error == pytest.approx(error, rel=1e-3)


def test_activations_by_hand(student):
    x = samples().astype(np.float64)
    low, high = x.min(), x.max()
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    rounded = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    weights = np.array([[1.27, -0.5], [0.03, 0.9]]) @ np.array([[127, 0.4], [0.3, -0.45]])
    wanted = x @ weights
    found = sensitivity(student, x, rounds="activations")
    assert {row.layer for row in found.layers} == {"x", "exact", "coarse"}
    (of_input,) = (row for row in found.layers if row.layer == "x")
    assert of_input.error == pytest.approx(
        np.mean(((rounded - x) @ weights) ** 2) / np.mean(wanted**2), rel=1e-3
    )
    errors = [row.error for row in found.layers]
    assert errors == sorted(errors, reverse=True)


def test_both_together_are_the_students_own_outputs_and_nothing_is_left_changed(student):
    x = samples()
    before = student(x).numpy()
    found = sensitivity(student, x)
    np.testing.assert_array_equal(student(x).numpy(), before)
    wanted = strip(student)(x).numpy()
    error = np.mean((before - wanted) ** 2) / np.mean(wanted**2)
    assert found.together.error == pytest.approx(error, rel=1e-4)
    assert {(row.layer, row.rounds) for row in found.layers} == {
        ("x", "activations"),
        ("exact", "both"),
        ("coarse", "both"),
    }
    assert all(row.score is None for row in found.layers)


def test_a_trained_models_parts_are_found_and_labels_score_them(trained, digits):
    _, _, x, y = digits
    student = quantize_aware(trained, x)
    depthwise = student.get_layer("quant_depthwise")
    depthwise.quantizer.set_range(depthwise.range, 0.0, 1e-3)  # nearly everything is cut off
    found = sensitivity(student, (x, y))
    assert {(row.layer, row.rounds) for row in found.layers} == {
        ("image", "activations"),
        ("conv", "weights"),
        ("relu", "activations"),
        ("depthwise", "both"),
        ("logits", "both"),
    }
    worst = found.layers[0]
    assert worst.layer == "depthwise"
    in_float = (trained.predict(x, verbose=0).argmax(axis=1) == y).mean()
    assert found.in_float == in_float
    assert worst.score < in_float - 0.1
    assert all(row.score >= in_float - 0.02 for row in found.layers[1:])
    by_divergence = sensitivity(student, x, measure="kl")
    assert by_divergence.layers[0].layer == "depthwise"
    assert min(row.error for row in by_divergence.layers) >= 0


def test_a_metric_of_ones_own_decides_the_order(student):
    x, y = samples(), np.arange(64) % 2

    def by_size(labels, outputs):
        np.testing.assert_array_equal(labels, y)
        return float(np.abs(outputs[0]).max())

    found = sensitivity(student, (x, y), metric=by_size)
    scores = [row.score for row in found.layers]
    assert scores == sorted(scores)
    assert found.in_float == pytest.approx(np.abs(strip(student)(x)).max(), rel=1e-6)


def test_the_table_the_plot_and_plain_values_say_the_same(student):
    found = sensitivity(student, (samples(), np.zeros(64, int)))
    plain = json.loads(json.dumps(found.to_dict()))
    assert [row["layer"] for row in plain["layers"]] == [row.layer for row in found.layers]
    lines = found.summary().splitlines()
    places = [next(i for i, line in enumerate(lines) if row.layer in line) for row in found.layers]
    assert places == sorted(places)
    assert any("(none)" in line for line in lines)
    (axes,) = found.plot().axes
    shown = [row for row in found.layers if row.error > 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.layer for row in shown]
    assert [bar.get_width() for bar in axes.patches] == [row.error for row in shown]


def test_what_cannot_be_measured_is_refused(student, trained, digits):
    with pytest.raises(UnsupportedModelError, match="no fake quantization"):
        sensitivity(trained, digits[0])
    with pytest.raises(ConfigurationError, match="without a range for image"):
        sensitivity(quantize_aware(trained), digits[0])
    with pytest.raises(ConfigurationError, match="kl, mse"):
        sensitivity(student, samples(), measure="mae")
    with pytest.raises(ConfigurationError, match="activations, both, weights"):
        sensitivity(student, samples(), rounds="biases")
    with pytest.raises(ConfigurationError, match="from 1 up"):
        sensitivity(student, samples(), samples=0)
    with pytest.raises(DataError, match="one class index a sample"):
        sensitivity(student, (samples(), np.zeros(3, int)))
    assert not any(
        layer.quantizer.passes for layer in student.layers if isinstance(layer, FakeQuantize)
    )
