"""LiteModel: the same outputs whichever way they are computed, and what it refuses."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.conversion.convert import convert
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    ModelFileError,
    OutputExistsError,
    UnsupportedModelError,
)
from kdtflite.lite import LiteModel, as_lite_model

L = keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (150, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def lite():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), name="image")
    biased = {"activation": "relu", "bias_initializer": "random_uniform"}
    x = L.Conv2D(6, 3, **biased, name="conv")(inputs)
    x = L.DepthwiseConv2D(3, **biased, name="depthwise")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, L.Dense(4, bias_initializer="random_uniform", name="logits")(x))
    return convert(model, IMAGES, progress=False)


def convert_function(function, *specs):
    """Returns the float file of a TensorFlow function, converted in this process."""
    concrete = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    return LiteModel(converter.convert())


@pytest.fixture(scope="module")
def batch_folded():
    """A file that can be resized, but then computes something else: a reshape mixes the batch."""
    weights = tf.constant(RNG.normal(0, 1, (4, 3)).astype(np.float32))

    def model(x):
        # Rows of the flattened batch change places: right for one sample only.
        return tf.reshape(tf.reshape(x, [-1, 4])[::-1], [-1, 4]) @ weights

    return convert_function(model, tf.TensorSpec((None, 4), tf.float32))


@pytest.fixture(scope="module")
def fixed_batch():
    """A file whose reshape to one sample is hard-coded."""
    weights = tf.constant(RNG.normal(0, 1, (4, 3)).astype(np.float32))
    return convert_function(
        lambda x: tf.reshape(x, [1, 4]) @ weights, tf.TensorSpec((1, 4), tf.float32, name="x")
    )


@pytest.fixture(scope="module")
def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    double = L.Rescaling(2.0, name="double")(inputs)
    model = keras.Model(inputs, [double, L.Dense(3, name="head")(double)])
    return convert(model, target="float32", progress=False)


@pytest.mark.parametrize("xnnpack", [True, False])
def test_workers_and_batch_size_do_not_change_the_outputs(lite, xnnpack):
    expected = lite.predict(IMAGES, workers=1, xnnpack=xnnpack)
    assert expected.shape == (150, 4)
    assert len(np.unique(expected, axis=0)) > 10
    for workers in (1, 2, 3):
        for batch_size in (1, 7, 8, 64):
            outputs = lite.predict(IMAGES, workers=workers, batch_size=batch_size, xnnpack=xnnpack)
            np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_array_equal(lite.predict(IMAGES[:1], batch_size=64), lite.predict(IMAGES)[:1])


def test_outputs_equal_those_of_a_bare_interpreter(lite):
    interpreter = lite.interpreter()
    spec, out = lite.inputs[0], lite.outputs[0]
    for image, row in zip(IMAGES[:5], lite.predict(IMAGES[:5], dequantize=False), strict=True):
        interpreter.set_tensor(spec.index, spec.quantize(image[None]))
        interpreter.invoke()
        np.testing.assert_array_equal(interpreter.get_tensor(out.index)[0], row)


def test_codes_and_real_values_predict_the_same(lite):
    codes = lite.inputs[0].quantize(IMAGES)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(lite.predict(codes), lite.predict(IMAGES))
    outputs = lite.predict(IMAGES, dequantize=False)
    assert outputs.dtype == np.int8
    np.testing.assert_array_equal(lite.outputs[0].dequantize(outputs), lite.predict(IMAGES))


def test_kernels_differ_by_few_codes_at_most(lite):
    one, other = (
        lite.predict(IMAGES, dequantize=False, xnnpack=xnnpack).astype(int)
        for xnnpack in (True, False)
    )
    assert np.abs(one - other).max() <= 4


def test_a_file_whose_batch_mixes_samples_is_run_one_by_one(batch_folded):
    x = RNG.normal(0, 1, (30, 4)).astype(np.float32)
    x[:2] = x[0]  # equal first samples alone would show nothing
    expected = batch_folded.predict(x)
    assert batch_folded.inputs[0].shape_signature == (-1, 4)
    for batch_size in (2, 8, 30):
        np.testing.assert_allclose(
            batch_folded.predict(x, batch_size=batch_size), expected, rtol=1e-6
        )


def test_a_file_that_cannot_be_resized_is_run_one_by_one(fixed_batch):
    x = RNG.normal(0, 1, (30, 4)).astype(np.float32)
    expected = np.concatenate([fixed_batch.predict(row[None]) for row in x])
    for batch_size in (1, 8):
        np.testing.assert_array_equal(fixed_batch.predict(x, batch_size=batch_size), expected)


def test_several_outputs_are_returned_by_name(two_outputs):
    x = RNG.normal(0, 1, (5, 4)).astype(np.float32)
    outputs = two_outputs.predict(x, batch_size=2)
    assert set(outputs) == {"double", "head"}
    np.testing.assert_allclose(outputs["double"], 2 * x, rtol=1e-6)
    assert outputs["head"].shape == (5, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (IMAGES[0], r"Expected shape \(samples, 8, 8, 1\) for input image\. Received: \(8, 8, 1\)"),
        (IMAGES[:, :4], r"Received: \(150, 4, 8, 1\)"),
        (IMAGES[:0], "at least one sample"),
        (np.where(np.arange(150)[:, None, None, None] == 7, np.nan, IMAGES), "first at 7"),
        ({"picture": IMAGES}, "inputs named image. Received: picture"),
        ({}, "inputs named image. Received: none"),
        (np.full((2, 8, 8, 1), "a"), "Expected numbers"),
        (np.full((2, 8, 8, 1), 1j), "Expected numbers"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(lite, x, message):
    with pytest.raises(DataError, match=message):
        lite.predict(x)


def test_workers_and_batches_below_one_are_refused(lite):
    with pytest.raises(ConfigurationError, match="workers from 1 up"):
        lite.predict(IMAGES, workers=0)
    with pytest.raises(ConfigurationError, match="batch_size from 1 up"):
        lite.predict(IMAGES, batch_size=0)


def test_a_file_saved_and_loaded_is_the_same(lite, tmp_path):
    path = lite.save(tmp_path / "model.tflite")
    assert path.read_bytes() == lite.content
    assert LiteModel.load(path) == lite
    np.testing.assert_array_equal(LiteModel.load(path).predict(IMAGES), lite.predict(IMAGES))
    with pytest.raises(OutputExistsError, match=r"Pass --force to replace it"):
        lite.save(path, option="--force")
    lite.save(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]


def test_anything_but_a_tflite_file_is_refused(lite, tmp_path):
    cases = {
        "missing.tflite": (None, "it is missing"),
        "empty.tflite": (b"", "empty"),
        "random.tflite": (RNG.bytes(5000), "not a .tflite file"),
        "text.tflite": (b"hello world, this is text", "not a .tflite file"),
        "marked.tflite": (b"\x1c\0\0\0TFL3" + RNG.bytes(5000), "damaged"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=message) as error:
            LiteModel.load(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ModelFileError, match="it is a folder"):
        LiteModel.load(tmp_path)


def test_as_lite_model_opens_a_file_in_any_form(lite, tmp_path):
    path = lite.save(tmp_path / "model.tflite")
    assert as_lite_model(lite) is lite
    for form in (lite.content, bytearray(lite.content), path, str(path)):
        assert as_lite_model(form) == lite


def test_as_lite_model_says_what_it_expected(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    model = keras.Sequential([keras.Input((2,)), L.Dense(1)])
    forms = (model, None, 3, "m.keras", tmp_path / "m.h5", tmp_path / "saved")
    received = ("Sequential", "NoneType", "int", "the Keras model m.keras", "m.h5", "saved")
    for form, name in zip(forms, received, strict=True):
        with pytest.raises(
            UnsupportedModelError, match=r"Expected a \.tflite file.*Received"
        ) as error:
            as_lite_model(form)
        assert f"{name}. Convert a Keras model first: kdtflite.convert(model, data)." in str(
            error.value
        )
    with pytest.raises(UnsupportedModelError, match=r"Received: str\. .*LiteModel\.load"):
        LiteModel("model.tflite")
    with pytest.raises(UnsupportedModelError, match="Received: NoneType"):
        LiteModel.load(None)
    with pytest.raises(ModelFileError, match="it is missing"):
        as_lite_model("nowhere.tflite")
    with pytest.raises(ModelFileError, match="identifier TFL3"):
        as_lite_model(b"no file at all")


def test_a_file_cut_off_anywhere_is_refused(lite):
    content = lite.content
    for length in range(8, len(content) - 16, len(content) // 60):
        with pytest.raises(ModelFileError, match=r"damaged|not a \.tflite"):
            LiteModel(content[:length])


def test_the_summary_lists_the_contents_of_the_file(lite):
    summary = lite.summary()
    spec = lite.outputs[0]
    assert summary.startswith(f"{len(lite.content):,} bytes, of which ")
    assert "input image: int8 [1, 8, 8, 1], scale 0.00392" in summary
    assert f"output logits: int8 [1, 4], scale {spec.scale:.9g}, zero point {spec.zero_point}" in (
        summary
    )
    operators = "CONV_2D × 1, DEPTHWISE_CONV_2D × 1, FULLY_CONNECTED × 1, MEAN × 1"
    assert f"operators: {operators}" in summary
    # 6·9 + 6·9 + 6·4 int8 weights and 6 + 6 + 4 int32 biases.
    constants = sum(t.bytes for t in lite.tensors if t.is_constant and "pool" not in t.name)
    assert constants == 54 + 54 + 24 + 4 * 16


def test_the_graph_read_from_the_bytes_equals_the_interpreters(lite):
    details = lite.interpreter(xnnpack=False).get_tensor_details()
    for detail in details[: len(lite.tensors)]:
        tensor = lite.tensors[detail["index"]]
        assert tensor.name == detail["name"]
        assert tensor.shape == tuple(detail["shape"])
        assert tensor.dtype == np.dtype(detail["dtype"]).name
        np.testing.assert_allclose(tensor.scales, detail["quantization_parameters"]["scales"])


def test_a_sample_that_a_kernel_refuses_raises_our_error():
    table = tf.constant(RNG.normal(0, 1, (10, 3)).astype(np.float32))
    file = convert_function(lambda x: tf.gather(table, x), tf.TensorSpec((None, 2), tf.int32))
    assert file.predict(np.array([[1, 9]])).shape == (1, 2, 3)
    with pytest.raises(ModelFileError, match="LiteRT cannot run this file"):
        file.predict(np.array([[1, 10]]))


@pytest.mark.parametrize("raw", [(IMAGES * 255).astype(np.uint8), IMAGES * 1e6, IMAGES * -2])
def test_samples_scaled_differently_are_reported_once(lite, raw, capsys):
    fresh = LiteModel(lite.content)
    for _ in range(2):
        fresh.predict(raw)
    message = capsys.readouterr().err
    assert message.count("input image of the file holds values from 0 to ") == 1
    assert f"Received: values from {float(raw.min()):.4g} to {float(raw.max()):.4g}" in message


@pytest.mark.parametrize(
    "x",
    [
        IMAGES,
        IMAGES * 1.2,  # 17 % saturate
        IMAGES * 0,
        np.full((2, 8, 8, 1), 100, np.int8),  # codes
    ],
)
def test_samples_scaled_as_in_training_pass_silently(lite, x, capsys):
    LiteModel(lite.content).predict(x)
    assert lite.check_scaling(x) is None
    assert capsys.readouterr().err == ""


def test_the_scaling_of_a_drawing_shows_in_its_ink(lite):
    drawing = np.zeros((4, 8, 8, 1), np.uint8)
    drawing[:, 3, 2:6] = 255  # 4 of 64 pixels
    assert "100% of those other than 0 saturate" in lite.check_scaling(drawing)


def test_the_hint_for_a_single_sample_is_given_only_for_one(lite):
    with pytest.raises(DataError, match=r"a leading axis: x\[None\]"):
        lite.predict(IMAGES[0])
    with pytest.raises(DataError, match="with the samples first") as error:
        lite.predict(IMAGES[..., 0])
    assert "leading axis" not in str(error.value)
    with pytest.raises(DataError, match=r"Received: a tf\.data\.Dataset\. Pass arrays"):
        lite.predict(tf.data.Dataset.from_tensor_slices(IMAGES).batch(8))


def test_the_repr_shows_inputs_and_outputs(lite):
    assert repr(lite) == (
        f"LiteModel({len(lite.content):,} bytes, image: int8 (1, 8, 8, 1) -> logits: int8 (1, 4))"
    )


def test_a_tensor_that_is_two_outputs_is_returned_under_both_names():
    inputs = keras.Input((3,), name="x")
    shared = L.Dense(2, name="shared")(inputs)
    model = keras.Model(inputs, {"one": shared, "two": shared})
    lite = convert(model, target="float32", progress=False)
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = lite.predict(values)
    assert list(found) == [spec.name for spec in lite.outputs] == model.output_names
    wanted = model.predict(values, verbose=0)
    for each in found.values():
        np.testing.assert_allclose(each, wanted["one"], rtol=1e-5)
