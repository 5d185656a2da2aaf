"""Bias correction: every layer has the mean output of the float model again."""

import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.errors import ConfigurationError, DataError, UnsupportedModelError
from kdtflite.quantization import correct_biases, quantize_aware, strip

L = keras.layers


def rounded(x, low, high, levels=255):
    """Fake quantization of an activation, zero on the grid, by hand."""
    scale = (high - low) / levels
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, levels) - zero) * scale


def test_one_layer_by_hand():
    inputs = keras.Input((3,), name="x")
    model = keras.Model(inputs, L.Dense(2, activation="relu", name="dense")(inputs))
    kernel = np.array([[1.27, 0.004], [0.014, -0.306], [-0.777, 0.5049]])
    model.get_layer("dense").set_weights([kernel, np.array([0.3, -0.2])])
    x = np.random.default_rng(0).uniform(0.5, 2, (96, 3))
    x[0] = [-1, 0, 2]
    student = quantize_aware(model, x)
    correction = correct_biases(student, x)
    # One scale for the kernel, 0.01, so its codes are the weights in hundredths, rounded. The
    # inputs range from -1 to 2.
    codes = np.array([[127, 0], [1, -31], [-78, 50]])
    y = x @ kernel + [0.3, -0.2]
    y_hat = rounded(x, -1, 2) @ (codes * 0.01) + [0.3, -0.2]
    change = y_hat.mean(axis=0) - y.mean(axis=0)
    assert np.abs(change).max() > 1e-3  # there is something to correct
    layer = student.get_layer("quant_dense")
    np.testing.assert_allclose(layer.layer.get_weights()[1], [0.3, -0.2] - change, atol=1e-6)
    inner = student.get_layer("quant_x")(x.astype(np.float32))
    np.testing.assert_allclose(
        layer.compute_pre_activation(inner).numpy().mean(axis=0), y.mean(axis=0), atol=1e-6
    )
    (one,) = correction.corrected
    assert (one.layer, one.parameter) == ("dense", "bias")
    assert one.largest == pytest.approx(np.abs(change).max(), rel=1e-4)
    assert correction.to_dict() == {
        "corrected": [{"layer": "dense", "parameter": "bias", "largest": one.largest}],
        "left": {},
    }


def means(model, layer, x):
    """The mean of each channel of the output of `layer` before its activation."""
    layer = model.get_layer(layer)
    held = keras.Model(model.input, layer.input)(x)
    if isinstance(layer, L.BatchNormalization):
        output = layer(held)
    elif hasattr(layer, "compute_pre_activation"):
        output = layer.compute_pre_activation(held)
    else:
        its_own, layer.activation = layer.activation, keras.activations.linear
        output = layer(held)
        layer.activation = its_own
    return output.numpy().astype(np.float64).reshape(-1, output.shape[-1]).mean(axis=0)


def test_after_the_layers_before_it_each_layer_has_the_mean_of_the_float_model(trained, digits):
    x = digits[0][:100]
    student = quantize_aware(trained, x)
    exact = strip(student)
    layers = [("norm", "norm"), ("depthwise", "quant_depthwise"), ("logits", "quant_logits")]
    wanted = [means(exact, name, x) for name, _ in layers]
    before = [means(student, name, x) for _, name in layers]
    correction = correct_biases(student, x)
    assert [(one.layer, one.parameter) for one in correction.corrected] == [
        ("conv", "beta of norm"),
        ("depthwise", "bias"),
        ("logits", "bias"),
    ]
    for (_, name), mean, old in zip(layers, wanted, before, strict=True):
        largest = np.abs(mean).max()
        assert np.abs(old - mean).max() > 1e-4 * largest
        np.testing.assert_allclose(means(student, name, x), mean, atol=2e-6 * largest)
    again = correct_biases(quantize_aware(trained, x), x)  # the same, whatever came before
    assert again == correction


def test_the_mean_output_of_the_file_comes_closer_to_that_of_the_float_model(trained, digits):
    x = digits[0][:300]
    wanted = trained(x).numpy().mean(axis=0)
    errors = []
    for correct in (False, True):
        student = quantize_aware(trained, x)
        if correct:
            correct_biases(student, x, samples=300)
        file = kdtflite.convert(student, x, progress=False)
        errors.append(np.abs(file.predict(x).mean(axis=0) - wanted).max())
    plain, corrected = errors
    assert corrected < 0.6 * plain
    assert corrected < file.outputs[0].scale


def test_a_layer_without_its_own_bias_is_left_and_reported(capsys):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2), name="image")
    x = L.Conv2D(3, 1, use_bias=False, name="bare")(inputs)
    x = L.Conv2D(3, 1, use_bias=False, name="normed")(x)
    x = L.BatchNormalization(center=False, name="norm")(x)
    shared = L.Conv2D(3, 1, name="shared")
    x = shared(shared(x))
    x = L.Conv2D(3, 1, name="biased")(x)
    x = L.BatchNormalization(center=False, name="norm_2")(x)
    model = keras.Model(inputs, L.Flatten()(x))
    data = np.random.default_rng(0).random((40, 4, 4, 2)).astype(np.float32)
    student = quantize_aware(model, data)
    correction = correct_biases(student, data)
    assert correction.left == {
        "bare": "it has no bias",
        "normed": "it has no bias",
        "shared": "it is called more than once: one bias serves all calls",
    }
    assert [(one.layer, one.parameter) for one in correction.corrected] == [("biased", "bias")]
    printed = " ".join(capsys.readouterr().err.split())
    assert "bare: it has no bias; normed: it has no bias; shared: it is called more" in printed


def test_several_inputs_by_name_and_batches_of_unequal_size():
    keras.utils.set_random_seed(1)
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    h = L.Concatenate()([L.Dense(4, name="one")(a), L.Dense(4, name="two")(b)])
    model = keras.Model({"b": b, "a": a}, L.Dense(2, name="out")(h))
    random = np.random.default_rng(0)
    data = {"a": random.normal(size=(65, 3)), "b": random.normal(size=(65, 2))}
    student = quantize_aware(model, data)
    exact = strip(student)
    x = {name: value.astype(np.float32) for name, value in data.items()}
    wanted = exact(x).numpy().mean(axis=0)
    correct_biases(student, data)
    layer = student.get_layer("quant_out")
    given = keras.Model(student.input, layer.input)(x)
    np.testing.assert_allclose(
        layer.compute_pre_activation(given).numpy().mean(axis=0), wanted, atol=1e-5
    )


def test_what_cannot_be_corrected_is_refused(trained, digits):
    x = digits[0][:40]
    with pytest.raises(UnsupportedModelError, match="'digits', which has no fake quantization"):
        correct_biases(trained, x)
    with pytest.raises(UnsupportedModelError, match="Received: int"):
        correct_biases(3, x)
    with pytest.raises(ConfigurationError, match="without a range for image"):
        correct_biases(quantize_aware(trained), x)
    student = quantize_aware(trained, x)
    weights = student.get_weights()
    with pytest.raises(ConfigurationError, match="from 1 up"):
        correct_biases(student, x, samples=0)
    with pytest.raises(DataError, match=r"\(40, 8, 8\)"):
        correct_biases(student, x[..., 0])
    for before, after in zip(weights, student.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
