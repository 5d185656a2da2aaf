"""Every layer of a file beside the Keras layer that it stands for."""

import json
import math

import numpy as np
import pytest

import kdtflite
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    OutputExistsError,
    ShapeMismatchError,
    UnsupportedModelError,
)
from kdtflite.pictures import save_picture


def measured(model, lite, x, **options):
    return kdtflite.layer_errors(model, lite, x, progress=False, **options)


def rows(errors):
    return {layer.layer: layer for layer in errors.layers}


@pytest.fixture(scope="module")
def errors(aware, aware_file, samples):
    return measured(aware, aware_file, samples)


def test_every_layer_has_a_row_or_is_accounted_for(errors):
    assert [layer.layer for layer in errors.layers] == [
        *("image", "relu", "depthwise", "flat", "logits")
    ]
    assert [layer.operator for layer in errors.layers] == [
        *("", "CONV_2D", "DEPTHWISE_CONV_2D", "RESHAPE", "FULLY_CONNECTED")
    ]
    assert rows(errors)["relu"].fused == ("conv", "norm")
    assert {layer.layer: layer.why for layer in errors.without_tensor} == {
        "conv": "fused into relu",
        "norm": "fused into relu",
        "drop": "changes nothing outside training",
    }
    assert errors.samples == 64
    assert errors.kernels == "XNNPACK"


def test_values_are_those_of_numpy_on_the_files_own_outputs(errors, trained, aware_file, samples):
    last = rows(errors)["logits"]
    x = trained.predict(samples, verbose=0).astype(np.float64)
    error = x - aware_file.predict(samples).astype(np.float64)
    assert last.mse == pytest.approx(np.mean(error**2), rel=1e-3)
    assert last.sqnr == pytest.approx(10 * np.log10(np.sum(x**2) / np.sum(error**2)), rel=1e-3)
    assert last.largest == pytest.approx(np.abs(error).max(), rel=1e-3)
    spec = aware_file.outputs[0]
    assert (last.scale, last.zero_point, last.dtype) == (spec.scale, spec.zero_point, "int8")
    assert last.largest_steps == pytest.approx(last.largest / spec.scale)
    # An input in its range is off by half a step, evenly spread: scale² / 12.
    image = rows(errors)["image"]
    assert image.mse == pytest.approx(image.scale**2 / 12, rel=0.05)
    assert image.fall is None


def test_a_fall_is_measured_from_what_the_operator_takes(errors):
    found = rows(errors)
    assert found["relu"].fall == pytest.approx(found["image"].sqnr - found["relu"].sqnr)
    assert found["depthwise"].fall == pytest.approx(found["relu"].sqnr - found["depthwise"].sqnr)
    assert found["flat"].fall == 0
    assert errors.worst.sqnr == min(layer.sqnr for layer in errors.layers)


@pytest.mark.parametrize("damaged", ["conv", "depthwise", "logits"])
def test_a_damaged_weight_is_the_steepest_fall(trained, aware_file, samples, damaged):
    import tf_keras as keras

    broken = keras.models.clone_model(trained)
    broken.set_weights(trained.get_weights())
    layer = broken.get_layer(damaged)
    kernel, *others = layer.get_weights()
    layer.set_weights([np.where(np.arange(kernel.size).reshape(kernel.shape) % 7, kernel, 0.5),
                       *others])  # fmt: skip
    found = measured(broken, aware_file, samples)
    named = {"conv": "relu"}.get(damaged, damaged)
    assert found.steepest.layer == named
    assert found.steepest.fall > 20
    before = [layer.layer for layer in found.layers].index(named)
    assert all(layer.sqnr > 30 for layer in found.layers[:before])
    assert found.worst.layer in [layer.layer for layer in found.layers[before:]]
    if damaged == "logits":
        assert found.worst.layer == "logits"


def test_the_float_model_and_its_student_give_the_same_table(errors, trained, aware_file, samples):
    found = measured(trained, aware_file, samples)
    assert [layer.layer for layer in found.layers] == [layer.layer for layer in errors.layers]
    for ours, theirs in zip(found.layers, errors.layers, strict=True):
        assert ours.sqnr == pytest.approx(theirs.sqnr, abs=0.05)


def test_a_float_file_has_hardly_an_error(student, float_file, samples):
    found = measured(student, float_file, samples)
    assert found.worst.sqnr > 100
    assert found.layers[-1].scale is None
    assert found.layers[-1].largest_steps is None
    assert found.layers[0].sqnr == math.inf
    assert found.to_dict()["layers"][0]["sqnr"] is None


def test_the_outputs_of_one_operator_are_told_apart(convert_plainly):
    import tensorflow as tf
    import tf_keras as keras

    inputs = keras.Input((3, 6), name="wave")
    first, _, last = tf.unstack(inputs, axis=1)
    # The second of three parts is not used, and has no memory in the file.
    left, _, right = tf.split(last, 3, axis=-1)
    x = keras.layers.Multiply(name="times")([left, right])
    x = keras.layers.Concatenate(name="join")([x, first])
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(x), name="parts")
    x = np.random.default_rng(0).normal(size=(20, 3, 6)).astype(np.float32)
    found = measured(model, convert_plainly(model), x)
    assert found.worst.sqnr > 100
    operators = [layer.operator for layer in found.layers]
    assert operators.count("UNPACK") == 2
    assert len([name for name in operators if name.startswith("SPLIT")]) == 2


def test_layers_taken_apart_go_by_the_users_names(sequence_student):
    aware, lite, samples, model = sequence_student
    found = rows(measured(aware, lite, samples))
    assert {"wave", "relu", "inner/deep", "layer_norm", "pool", "logits"} <= set(found)
    assert {"layer_norm (mean)", "layer_norm (rsqrt)"} <= set(found)
    assert not any("row" in name or "quant_" in name for name in found)
    # Of the float model as the user made it, whole layers are found, however they are computed.
    plain = measured(model, lite, samples)
    assert [layer.layer for layer in plain.layers] == [
        *("wave", "relu", "inner/deep", "layer_norm", "pool", "logits")
    ]
    assert [layer.layer for layer in plain.without_tensor] == ["conv", "norm"]
    for layer in plain.layers:
        assert layer.sqnr == pytest.approx(found[layer.layer].sqnr, abs=0.05)


def test_a_student_from_a_file_is_matched_as_well(sequence_student, tmp_path):
    aware, lite, samples, _ = sequence_student
    aware.save(tmp_path / "student.keras")
    loaded = kdtflite.load_model(tmp_path / "student.keras")
    found = rows(measured(loaded, lite, samples))
    # The nested model's name is not in the file.
    assert {"wave", "relu", "deep", "layer_norm", "pool", "logits"} <= set(found)
    assert found["relu"].sqnr == pytest.approx(rows(measured(aware, lite, samples))["relu"].sqnr)


def test_a_layer_that_is_nowhere_in_the_file_is_listed(trained, aware_file, samples):
    import tf_keras as keras

    longer = keras.Model(
        trained.input,
        keras.layers.Dense(4, name="more", kernel_initializer="identity")(
            keras.layers.Activation("tanh", name="bent")(trained.output)
        ),
    )
    found = measured(longer, aware_file, samples)
    missing = {layer.layer: layer.why for layer in found.without_tensor}
    # The file ends in logits; what follows them in the Keras model takes their place.
    assert set(missing) == {"conv", "norm", "drop", "logits", "bent"}
    assert found.layers[-1].layer == "more"


def test_results_are_plain_values_a_table_and_a_picture(errors, tmp_path):
    plain = json.loads(json.dumps(errors.to_dict()))
    assert [layer["layer"] for layer in plain["layers"]][1] == "relu"
    assert plain["layers"][1]["fused"] == ["conv", "norm"]
    assert plain["without_tensor"][0] == {
        "layer": "conv",
        "kind": "Conv2D",
        "why": "fused into relu",
    }
    text = str(errors)
    assert "5 tensors of the file compared on 64 samples, run with the XNNPACK kernels" in text
    assert f"Lowest SQNR: {errors.worst.layer}, {errors.worst.sqnr:.1f} dB." in text
    assert "fused into another: 2 (conv, norm)" in text
    picture = save_picture(errors.plot(), tmp_path / "errors.png", overwrite=False)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        save_picture(errors.plot(), tmp_path / "errors.png", overwrite=False)
    with pytest.raises(ConfigurationError, match="kind of picture"):
        save_picture(errors.plot(), tmp_path / "errors.gif", overwrite=False)


def test_the_drawing_shows_each_layer_at_its_value(errors):
    ax = errors.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        layer.layer for layer in errors.layers
    ]
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), [layer.sqnr for layer in errors.layers])


def test_of_many_layers_the_lowest_are_named():
    from kdtflite.evaluation.layers.plot import draw_sqnr

    layers = [(f"layer_{i}", 60.0 - (i % 50)) for i in range(99)] + [("exact", math.inf)]
    legend = draw_sqnr(layers).get_legend()
    named = [text.get_text() for text in legend.get_texts()]
    # Of 45 and 95, both at 15 dB, the first.
    assert named[0] == "layer_45, 15.0 dB"
    assert "layer_49, 11.0 dB" in named
    assert len(named) == 8


@pytest.mark.parametrize("xnnpack", [True, False])
def test_the_kernels_are_named(aware, aware_file, samples, xnnpack):
    found = measured(aware, aware_file, samples[:2], xnnpack=xnnpack)
    assert found.kernels == ("XNNPACK" if xnnpack else "built-in")


def test_what_cannot_be_compared_is_refused(aware, trained, aware_file, samples, convert_plainly):
    with pytest.raises(ConfigurationError, match="samples from 1 up"):
        measured(aware, aware_file, samples, samples=0)
    with pytest.raises(DataError, match="image"):
        measured(aware, aware_file, samples[:, :4])
    with pytest.raises(DataError, match=r"NaN|infinit"):
        measured(aware, aware_file, samples * np.nan)
    with pytest.raises(UnsupportedModelError, match=r"Expected a \.tflite file"):
        measured(aware, trained, samples)
    with pytest.raises(UnsupportedModelError, match="Expected a Keras model"):
        measured(aware_file, aware, samples)
    import tf_keras as keras

    other = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten()])
    with pytest.raises(ShapeMismatchError, match="converted from this model"):
        measured(other, aware_file, samples[:, :6, :6])


def test_weights_that_are_not_finite_are_named_by_their_layer(trained, aware_file, samples):
    import tf_keras as keras

    broken = keras.models.clone_model(trained)
    broken.set_weights(trained.get_weights())
    # Not before a ReLU: fused into a convolution, TensorFlow's makes zeros of NaN.
    layer = broken.get_layer("logits")
    layer.set_weights([weight * np.nan for weight in layer.get_weights()])
    with pytest.raises(DataError, match=r"Layer logits: .*NaN or infinity"):
        measured(broken, aware_file, samples)


def test_a_layer_that_gives_nothing_but_error_has_fallen_without_end(trained, aware_file, samples):
    import tf_keras as keras

    silent = keras.models.clone_model(trained)
    silent.set_weights(trained.get_weights())
    layer = silent.get_layer("depthwise")
    layer.set_weights([weight * 0 for weight in layer.get_weights()])
    found = measured(silent, aware_file, samples)
    assert (found.worst.layer, found.worst.sqnr, found.worst.cosine) == ("depthwise", -math.inf, 0)
    assert (found.steepest.layer, found.steepest.fall) == ("depthwise", math.inf)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["layers"][2]["fall"] is None
