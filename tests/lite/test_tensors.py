"""The quantization arithmetic is exact, and LiteRT's own."""

import json
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtflite.lite import LiteModel, TensorSpec, dequantize, quantize


def compute_code(x, scale, zero_point, dtype):
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
        assert codes[0] == compute_code(x, scale, zero_point, dtype)


def test_halves_are_rounded_away_from_zero():
    x = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, -0.49999997, 8388609.0]
    np.testing.assert_array_equal(quantize(x, 1.0, 0, "int16")[:8], [1, 2, 3, -1, -2, -3, 0, 0])
    np.testing.assert_array_equal(quantize(x, 1.0, 10, "int8")[:3], [11, 12, 13])


def test_every_half_step_of_every_code():
    codes = np.arange(-127, 127)
    for zero_point in (-128, -3, 0, 127):
        expected = [compute_code(code + 0.5, 1.0, zero_point, "int8") for code in codes]
        np.testing.assert_array_equal(quantize(codes + 0.5, 1.0, zero_point, "int8"), expected)


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("int8", -128, 127), ("uint8", 0, 255), ("int16", -32768, 32767)],
)
def test_values_out_of_range_saturate_and_nan_is_zero(dtype, low, high):
    zero_point = 0 if dtype == "int16" else 5
    x = [np.inf, -np.inf, 1e30, -1e30, np.nan, 3.4e38]
    np.testing.assert_array_equal(
        quantize(x, 0.01, zero_point, dtype), [high, low, high, low, zero_point, high]
    )
    np.testing.assert_array_equal(quantize(x, 1e-30, zero_point, dtype)[:2], [high, low])


def test_dequantize_is_exact_in_float32():
    codes = np.arange(-128, 128).astype(np.int8)
    values = dequantize(codes, 0.1, -5)
    assert values.dtype == np.float32
    expected = [float(Fraction(int(c) + 5) * Fraction(float(np.float32(0.1)))) for c in codes]
    np.testing.assert_allclose(values, expected, rtol=6e-8)
    np.testing.assert_array_equal(dequantize(np.array([255], np.uint8), 1.0, 0), [255.0])


@settings(max_examples=100, deadline=None)
@given(
    scale=st.floats(2.0**-20, 1024.0, width=32),
    zero_point=st.integers(-128, 127),
)
def test_codes_survive_the_round_trip(scale, zero_point):
    codes = np.arange(-128, 128).astype(np.int8)
    again = quantize(dequantize(codes, scale, zero_point), scale, zero_point, "int8")
    np.testing.assert_array_equal(again, codes)


def test_litert_s_reference_quantize_kernel_gives_the_same_codes():
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
    # Half steps, half of which rounding to even would change; then arbitrary values.
    halves = ((np.arange(4001) % 510) / 2 * np.float32(spec.scale)).astype(np.float32)
    for x in (halves, np.random.default_rng(0).uniform(-1, 27, 4001).astype(np.float32)):
        interpreter.set_tensor(file.inputs[0].index, x[None])
        interpreter.invoke()
        kernel = interpreter.get_tensor(spec.index)[0]
        np.testing.assert_array_equal(kernel, quantize(x, spec.scale, spec.zero_point, "int8"))


def test_a_spec_keeps_codes_and_quantizes_pixels():
    spec = TensorSpec("x", 0, (1, 2), (-1, 2), "int8", 1.0, -128)
    codes = np.array([[-128, 5]], np.int8)
    assert spec.quantize(codes) is codes
    np.testing.assert_array_equal(spec.quantize(np.array([[0, 255]], np.uint8)), [[-128, 127]])
    np.testing.assert_array_equal(spec.dequantize(codes), [[0.0, 133.0]])
    plain = TensorSpec("x", 0, (1,), (-1,), "int32", None, None)
    assert plain.quantize([3.0]).dtype == np.int32
    np.testing.assert_array_equal(plain.dequantize(np.array([3])), [3])
    assert json.loads(json.dumps(spec.to_dict()))["zero_point"] == -128
