"""Mixed precision: which activations are widened, what that gains, and what the file becomes."""

import json
import sys

import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.conversion import prove_fully_integer
from kdtflite.conversion.edge_quantizer import EdgeQuantizer
from kdtflite.data.representative import RepresentativeData
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    ModelFileError,
    NotFullyIntegerError,
    UnsupportedModelError,
)

pytest.importorskip("litert_quantizer", reason="litert-quantizer is not installed")

L = keras.layers


@pytest.fixture(scope="module")
def model():
    """One channel of the layer "uneven" is a thousand times the others; "evened" undoes it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2), name="image")
    h = L.Conv2D(4, 3, activation="relu", name="first")(inputs)
    h = L.Conv2D(4, 1, activation="relu", name="uneven")(h)
    h = L.DepthwiseConv2D(1, name="evened")(h)
    h = L.Conv2D(4, 3, padding="same", activation="relu", name="last")(h)
    h = L.GlobalAveragePooling2D(name="mean")(h)
    model = keras.Model(inputs, L.Dense(3, name="logits")(h), name="net")
    scale = np.array([1000.0, 1, 1, 1])
    kernel, bias = model.get_layer("uneven").get_weights()
    model.get_layer("uneven").set_weights([np.abs(kernel) * scale, bias * scale])
    kernel, bias = model.get_layer("evened").get_weights()
    model.get_layer("evened").set_weights([np.ones_like(kernel) / scale[:, None], bias])
    return model


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(70, 6, 6, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def float_file(model):
    return kdtflite.convert(model, target="float32")


def test_a_file_without_names_of_its_own_is_refused(float_file, x):
    packed = kdtflite.pack(float_file, "none")
    with pytest.raises(ModelFileError, match="tensors have names of their own"):
        kdtflite.mixed_precision(packed, x, keep=1)


def error(model, file, x):
    wanted = model(x).numpy().astype(np.float64)
    return np.mean((file.predict(x) - wanted) ** 2) / np.mean(wanted**2)


def test_the_activation_that_suffers_most_from_int8_becomes_int16(model, float_file, x):
    mixed = kdtflite.mixed_precision(float_file, x, keep=1)
    assert next(iter(mixed.ranking)) == "uneven"
    assert set(mixed.ranking) == {"first", "uneven", "evened", "last", "mean"}
    base, step = mixed.steps
    assert (base.layer, base.operators) == ("", 0)
    assert (step.layer, step.operators) == (
        "uneven",
        2,
    )  # its writer and its reader
    assert step.error == step.alone == mixed.ranking["uneven"]
    assert step.error == pytest.approx(error(model, mixed.file, x), rel=1e-3)
    assert step.error < base.error / 10
    assert step.bytes == len(mixed.file.content)
    proof = prove_fully_integer(mixed.file)
    kinds = [(one["name"], one["outputs"][0]) for one in proof.operators]
    assert kinds == [
        ("CONV_2D", "int8"),
        ("QUANTIZE", "int16"),
        ("CONV_2D", "int16"),
        ("DEPTHWISE_CONV_2D", "int16"),
        ("QUANTIZE", "int8"),
        ("CONV_2D", "int8"),
        ("MEAN", "int8"),
        ("FULLY_CONNECTED", "int8"),
    ]
    assert mixed.file.inputs[0].dtype == mixed.file.outputs[0].dtype == "int8"
    assert mixed.reached is None


def test_it_stops_at_the_tolerance_and_says_when_it_cannot_be_reached(float_file, x, capsys):
    mixed = kdtflite.mixed_precision(float_file, x, tolerance=1e-3)
    errors = [step.error for step in mixed.steps]
    assert mixed.reached
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 1e-3 < errors[-2]
    hopeless = kdtflite.mixed_precision(float_file, x, tolerance=0)
    assert hopeless.reached is False
    assert hopeless.steps[-1].error <= errors[-1]
    assert "The tolerance was not reached." in " ".join(capsys.readouterr().err.split())
    nothing = kdtflite.mixed_precision(float_file, x, keep=0, tolerance=1e-3)
    assert len(nothing.steps) == 1
    assert nothing.steps[0] == mixed.steps[0]


def test_the_file_stays_within_its_budget(float_file, x):
    free = kdtflite.mixed_precision(float_file, x, keep=9)
    sizes = [step.bytes for step in free.steps]
    budget = max(sizes) - 1
    bound = kdtflite.mixed_precision(float_file, x, budget_bytes=budget)
    assert len(bound.file.content) <= budget
    assert max(step.bytes for step in bound.steps) <= budget
    with pytest.raises(ConfigurationError, match=rf"has {sizes[0]:,} bytes in int8"):
        kdtflite.mixed_precision(float_file, x, budget_bytes=sizes[0] - 1)


def test_operators_in_float_keep_integer_inputs_and_outputs(float_file, x):
    mixed = kdtflite.mixed_precision(float_file, x, keep=1, wide="float32")
    assert mixed.steps[-1].layer == "uneven"
    assert mixed.steps[-1].error < mixed.steps[0].error / 10
    with pytest.raises(NotFullyIntegerError, match="uneven"):
        prove_fully_integer(mixed.file, layers=["uneven"])
    assert mixed.file.inputs[0].dtype == mixed.file.outputs[0].dtype == "int8"


def test_inputs_and_outputs_of_16_bits(model, float_file, x):
    mixed = kdtflite.mixed_precision(float_file, x, keep=1, io_dtype="int16")
    assert mixed.file.inputs[0].dtype == mixed.file.outputs[0].dtype == "int16"
    assert mixed.steps[-1].error == pytest.approx(error(model, mixed.file, x), rel=1e-3)


def test_with_labels_the_tolerance_concerns_accuracy(model, float_file, x):
    y = model(x).numpy().argmax(axis=1)
    mixed = kdtflite.mixed_precision(float_file, x, validation=(x, y), tolerance=0.02, measure="kl")
    assert mixed.accuracy_in_float == 1
    assert mixed.reached
    accuracies = [step.accuracy for step in mixed.steps]
    assert accuracies[-1] == (mixed.file.predict(x).argmax(axis=1) == y).mean() >= 0.98
    assert all(accuracy < 0.98 for accuracy in accuracies[:-1])


def test_a_post_training_student_and_plain_values(model, x):
    student = kdtflite.quantize_post_training(model, x, correct_biases=True)
    mixed = kdtflite.mixed_precision(student, x, keep=1, samples=32)
    assert mixed.steps[-1].layer == "uneven"
    plain = json.loads(json.dumps(mixed.to_dict()))
    assert [step["layer"] for step in plain["steps"]] == ["", "uneven"]
    assert plain["bytes"] == len(mixed.file.content)
    assert "(all in int8)" in str(mixed)
    assert "uneven" in str(mixed)
    (line,) = mixed.plot().lines
    assert list(line.get_xdata()) == [step.bytes for step in mixed.steps]


def test_values_are_followed_through_operators_that_only_move_them(x):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2), name="image")
    h = L.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    h = L.Flatten(name="flat")(L.MaxPooling2D(name="pool")(h))
    h = L.Dense(5, activation="relu", name="hidden")(h)
    model = keras.Model(inputs, L.Dense(3, name="logits")(h))
    mixed = kdtflite.mixed_precision(model, x, keep=2)
    assert set(mixed.ranking) == {"conv", "hidden"}  # the logits are the file's output
    wide = [one["name"] for one in prove_fully_integer(mixed.file).operators]
    assert wide.count("QUANTIZE") <= 2


def test_ranges_are_the_least_and_the_greatest_over_all_batches(float_file, x):
    data = np.concatenate([x, x / 100])  # an average over batches would be narrower
    lite = EdgeQuantizer(float_file, RepresentativeData({"image": data})).quantize()
    assert lite.inputs[0].scale == pytest.approx((x.max() - x.min()) / 255, rel=1e-5)


def test_errors_say_what_is_wrong(float_file, x, monkeypatch):
    for arguments, message in (
        ({}, "keep=, budget_bytes= or tolerance="),
        ({"keep": -1}, "keep from 0 up"),
        ({"tolerance": float("nan")}, "tolerance from 0 up"),
        ({"tolerance": -0.1}, "tolerance from 0 up"),
        ({"budget_bytes": 0}, "budget_bytes from 1 up"),
        ({"keep": 1, "samples": 0}, "samples from 1 up"),
        ({"keep": 1, "wide": "int4"}, "float32, int16, int8"),
        ({"keep": 1, "wide": "int8", "io_dtype": "int16"}, "one of: int8"),
        ({"keep": 1, "io_dtype": "uint8"}, "int16, int8"),
        ({"keep": 1, "measure": "mae"}, "kl, mse"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            kdtflite.mixed_precision(float_file, x, **arguments)
    with pytest.raises(DataError, match=r"\(70, 6, 6\)"):
        kdtflite.mixed_precision(float_file, x[..., 0], keep=1)
    inputs = keras.Input((4,), name="x")
    no_kernel = keras.Model(inputs, L.Dense(2, name="out")(keras.activations.elu(inputs)))
    with pytest.raises(NotFullyIntegerError, match="ELU"):
        kdtflite.mixed_precision(no_kernel, x.reshape(-1, 4), keep=1)
    integer = EdgeQuantizer(float_file, RepresentativeData({"image": x})).quantize()
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        kdtflite.mixed_precision(integer, x, keep=1)
    monkeypatch.setitem(sys.modules, "litert_quantizer", None)
    with pytest.raises(ConfigurationError, match=r"kdtflite\[edge\]"):
        kdtflite.mixed_precision(float_file, x, keep=1)
