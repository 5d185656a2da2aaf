"""LiteModel: one arithmetic, and the same outputs whichever way they are computed."""

import json
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtflite.conversion.convert import convert
from kdtflite.errors import ConfigurationError, DataError, ModelFileError, OutputExistsError
from kdtflite.litemodel import LiteModel, TensorSpec, dequantize, quantize

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


def converted(function, *specs):
    """The float file of a TensorFlow function, made in this process."""
    concrete = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    return LiteModel(converter.convert())


@pytest.fixture(scope="module")
def batch_folded():
    """A file that can be resized but gives other numbers then: the batch is in a reshape."""
    weights = tf.constant(RNG.normal(0, 1, (4, 3)).astype(np.float32))

    def model(x):
        # Each row of the flattened batch meets the next one: right for one sample only.
        return tf.reshape(tf.reshape(x, [-1, 4])[::-1], [-1, 4]) @ weights

    return converted(model, tf.TensorSpec((None, 4), tf.float32))


@pytest.fixture(scope="module")
def fixed_batch():
    """A file whose reshape to one sample is hard-coded."""
    weights = tf.constant(RNG.normal(0, 1, (4, 3)).astype(np.float32))
    return converted(
        lambda x: tf.reshape(x, [1, 4]) @ weights, tf.TensorSpec((1, 4), tf.float32, name="x")
    )


@pytest.fixture(scope="module")
def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    double = L.Rescaling(2.0, name="double")(inputs)
    model = keras.Model(inputs, [double, L.Dense(3, name="head")(double)])
    return convert(model, target="float32", progress=False)


def exact_code(x, scale, zero_point, dtype):
    """Rational arithmetic on the float32 quotient: half away from zero, then saturation."""
    steps = Fraction(float(np.float32(x) / np.float32(scale)))
    rounded = floor(abs(steps) + Fraction(1, 2)) * (1 if steps >= 0 else -1)
    info = np.iinfo(dtype)
    return min(max(rounded + zero_point, info.min), info.max)


@settings(max_examples=300, deadline=None)
@given(
    x=st.floats(-1e4, 1e4, width=32),
    scale=st.sampled_from([1.0, 0.5, 1 / 255, 0.1, 3e-5, 7.8e-9, 12.3]),
    zero_point=st.integers(-128, 127),
    dtype=st.sampled_from(["int8", "uint8", "int16"]),
)
def test_quantize_is_exact_rational_arithmetic(x, scale, zero_point, dtype):
    zero_point = zero_point + 128 if dtype == "uint8" else zero_point
    codes = quantize([x], scale, zero_point, dtype)
    assert codes.dtype == dtype
    with np.errstate(over="ignore"):
        assert codes[0] == exact_code(x, scale, zero_point, dtype)


def test_halves_are_rounded_away_from_zero():
    x = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -0.49999997, 8388609.0]
    np.testing.assert_array_equal(quantize(x, 1.0, 0, "int16")[:8], [1, 2, 3, -1, -2, -3, 0, 0])
    np.testing.assert_array_equal(quantize(x, 1.0, 10, "int8")[:3], [11, 12, 13])


def test_every_half_step_of_every_code():
    codes = np.arange(-127, 127)
    for zero_point in (-128, -3, 0, 127):
        expected = [exact_code(code + 0.5, 1.0, zero_point, "int8") for code in codes]
        np.testing.assert_array_equal(quantize(codes + 0.5, 1.0, zero_point, "int8"), expected)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int8", -128, 127), ("uint8", 0, 255), ("int16", -32768, 32767)],
)
def test_values_outside_saturate_and_nan_is_zero(dtype, low, high):
    zero_point = 0 if dtype == "int16" else 5
    x = [np.inf, -np.inf, 1e30, -1e30, np.nan, 3.4e38]
    np.testing.assert_array_equal(
        quantize(x, 0.01, zero_point, dtype), [high, low, high, low, zero_point, high]
    )
    np.testing.assert_array_equal(quantize(x, 1e-30, zero_point, dtype)[:2], [high, low])


def test_dequantize_is_exact_in_float32():
    codes = np.arange(-128, 128).astype(np.int8)
    given_ = dequantize(codes, 0.1, -5)
    assert given_.dtype == np.float32
    expected = [float(Fraction(int(c) + 5) * Fraction(float(np.float32(0.1)))) for c in codes]
    np.testing.assert_allclose(given_, expected, rtol=6e-8)
    np.testing.assert_array_equal(dequantize(np.array([255], np.uint8), 1.0, 0), [255.0])


@settings(max_examples=100, deadline=None)
@given(
    scale=st.floats(2.0**-20, 1024.0, width=32),
    zero_point=st.integers(-128, 127),
)
def test_codes_survive_the_way_there_and_back(scale, zero_point):
    codes = np.arange(-128, 128).astype(np.int8)
    again = quantize(dequantize(codes, scale, zero_point), scale, zero_point, "int8")
    np.testing.assert_array_equal(again, codes)


def test_it_is_litert_s_reference_quantize_kernel():
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    def model(x):
        return tf.quantization.fake_quant_with_min_max_args(x, 0.0, 25.5, 8)

    concrete = tf.function(model).get_concrete_function(tf.TensorSpec((1, 4001), tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_output_type = tf.int8
    converter.representative_dataset = lambda: iter(
        [[np.linspace(0, 25.5, 4001, dtype=np.float32)[None]]]
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    file = LiteModel(converter.convert())
    assert [operator.name for operator in file.operators] == ["QUANTIZE"]
    spec = file.outputs[0]
    interpreter = Interpreter(
        model_content=file.content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    # Half steps, where rounding to even would differ for half of them; and any values.
    halves = ((np.arange(4001) % 510) / 2 * np.float32(spec.scale)).astype(np.float32)
    for x in (halves, RNG.uniform(-1, 27, 4001).astype(np.float32)):
        interpreter.set_tensor(file.inputs[0].index, x[None])
        interpreter.invoke()
        kernel = interpreter.get_tensor(spec.index)[0]
        np.testing.assert_array_equal(kernel, quantize(x, spec.scale, spec.zero_point, "int8"))


def test_a_spec_takes_codes_as_they_are_and_pixels_as_values():
    spec = TensorSpec("x", 0, (1, 2), (-1, 2), "int8", 1.0, -128)
    codes = np.array([[-128, 5]], np.int8)
    assert spec.quantize(codes) is codes
    np.testing.assert_array_equal(spec.quantize(np.array([[0, 255]], np.uint8)), [[-128, 127]])
    np.testing.assert_array_equal(spec.dequantize(codes), [[0.0, 133.0]])
    plain = TensorSpec("x", 0, (1,), (-1,), "int32", None, None)
    assert plain.quantize([3.0]).dtype == np.int32
    np.testing.assert_array_equal(plain.dequantize(np.array([3])), [3])
    assert json.loads(json.dumps(spec.to_dict()))["zero_point"] == -128


@pytest.mark.parametrize("xnnpack", [True, False])
def test_outputs_are_the_same_whatever_the_workers_and_the_batch(lite, xnnpack):
    expected = lite.predict(IMAGES, workers=1, xnnpack=xnnpack)
    assert expected.shape == (150, 4)
    assert len(np.unique(expected, axis=0)) > 10
    for workers in (1, 2, 3):
        for batch_size in (1, 7, 8, 64):
            given_ = lite.predict(IMAGES, workers=workers, batch_size=batch_size, xnnpack=xnnpack)
            np.testing.assert_array_equal(given_, expected)
    np.testing.assert_array_equal(lite.predict(IMAGES[:1], batch_size=64), lite.predict(IMAGES)[:1])


def test_outputs_are_a_bare_interpreters(lite):
    interpreter = lite.interpreter()
    spec, out = lite.inputs[0], lite.outputs[0]
    for image, row in zip(IMAGES[:5], lite.predict(IMAGES[:5], dequantize=False), strict=True):
        interpreter.set_tensor(spec.index, spec.quantize(image[None]))
        interpreter.invoke()
        np.testing.assert_array_equal(interpreter.get_tensor(out.index)[0], row)


def test_codes_and_values_give_the_same(lite):
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
    x[:2] = x[0]  # the first samples are alike: they alone would show nothing
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


def test_several_outputs_come_by_name(two_outputs):
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
def test_inputs_that_do_not_fit_are_said(lite, x, message):
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


def test_what_is_no_tflite_file_is_said(lite, tmp_path):
    cases = {
        "missing.tflite": (None, "it is missing"),
        "empty.tflite": (b"", "empty"),
        "random.tflite": (RNG.bytes(5000), "no .tflite file"),
        "text.tflite": (b"hello world, this is text", "no .tflite file"),
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


def test_a_file_cut_off_anywhere_is_refused(lite):
    content = lite.content
    for length in range(8, len(content) - 16, len(content) // 60):
        with pytest.raises(ModelFileError, match=r"damaged|no \.tflite"):
            LiteModel(content[:length])


def test_the_summary_says_what_is_in_the_file(lite):
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


def test_the_graph_read_from_the_bytes_is_the_interpreters(lite):
    details = lite.interpreter(xnnpack=False).get_tensor_details()
    for detail in details[: len(lite.tensors)]:
        tensor = lite.tensors[detail["index"]]
        assert tensor.name == detail["name"]
        assert tensor.shape == tuple(detail["shape"])
        assert tensor.dtype == np.dtype(detail["dtype"]).name
        np.testing.assert_allclose(tensor.scales, detail["quantization_parameters"]["scales"])


def test_a_mistake_of_the_sample_is_an_error_of_ours():
    table = tf.constant(RNG.normal(0, 1, (10, 3)).astype(np.float32))
    file = converted(lambda x: tf.gather(table, x), tf.TensorSpec((None, 2), tf.int32))
    assert file.predict(np.array([[1, 9]])).shape == (1, 2, 3)
    with pytest.raises(ModelFileError, match="LiteRT cannot run this file"):
        file.predict(np.array([[1, 10]]))


@pytest.mark.parametrize("raw", [(IMAGES * 255).astype(np.uint8), IMAGES * 1e6, IMAGES * -2])
def test_samples_of_another_scaling_are_remarked_on_once(lite, raw, capsys):
    fresh = LiteModel(lite.content)
    for _ in range(2):
        fresh.predict(raw)
    said = capsys.readouterr().err
    assert said.count("input image of the file holds values from 0 to ") == 1
    assert f"Received: values from {float(raw.min()):.4g} to {float(raw.max()):.4g}" in said


@pytest.mark.parametrize(
    "x",
    [
        IMAGES,
        IMAGES * 1.2,  # 17 % saturate
        IMAGES * 0,
        np.full((2, 8, 8, 1), 100, np.int8),  # codes
    ],
)
def test_samples_in_scaling_pass_in_silence(lite, x, capsys):
    LiteModel(lite.content).predict(x)
    assert lite.other_scaling(x) is None
    assert capsys.readouterr().err == ""


def test_a_drawing_on_an_empty_ground_is_told_by_its_ink(lite):
    drawing = np.zeros((4, 8, 8, 1), np.uint8)
    drawing[:, 3, 2:6] = 255  # 4 of 64 pixels
    assert "100% of those other than 0 saturate" in lite.other_scaling(drawing)


def test_the_hint_for_a_single_sample_is_given_for_one_only(lite):
    with pytest.raises(DataError, match=r"a leading axis: x\[None\]"):
        lite.predict(IMAGES[0])
    with pytest.raises(DataError, match="with the samples first") as error:
        lite.predict(IMAGES[..., 0])
    assert "leading axis" not in str(error.value)
    with pytest.raises(DataError, match=r"Received: a tf\.data\.Dataset\. Pass arrays"):
        lite.predict(tf.data.Dataset.from_tensor_slices(IMAGES).batch(8))


def test_its_repr_says_what_it_takes_and_gives(lite):
    assert repr(lite) == (
        f"LiteModel({len(lite.content):,} bytes, image: int8 (1, 8, 8, 1) -> logits: int8 (1, 4))"
    )
