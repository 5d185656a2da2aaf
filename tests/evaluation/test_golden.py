"""Golden vectors: what stands in the file is what LiteRT and exact arithmetic say."""

from __future__ import annotations

import base64
import hashlib
import json
from fractions import Fraction
from math import floor, isinf, isnan

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kdtflite.errors import ConfigurationError, DataError, ModelFileError, OutputExistsError
from kdtflite.evaluation import golden_vectors
from kdtflite.lite.model import LiteModel


def read(text, dtype, shape=(-1,)):
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).reshape(shape)


@pytest.fixture(scope="module")
def token_file():
    """A float file of two inputs: token ids (int32), looked up and added to an offset."""
    import tensorflow as tf

    table = tf.constant(np.arange(20, dtype=np.float32).reshape(10, 2))

    @tf.function(
        input_signature=[
            tf.TensorSpec((1, 3), tf.int32, name="tokens"),
            tf.TensorSpec((1, 2), tf.float32, name="offset"),
        ]
    )
    def model(tokens, offset):
        return {"sum": tf.reduce_sum(tf.gather(table, tokens), axis=1) + offset}

    module = tf.Module()
    module.serve = model
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [model.get_concrete_function()], module
    )
    return LiteModel(converter.convert())


def test_samples_are_what_litert_answers_to_the_codes(int8_file, samples):
    golden = json.loads(json.dumps(golden_vectors(int8_file, samples, samples=64).to_dict()))
    (given,), (answered,) = golden["inputs"], golden["outputs"]
    # The float32 value itself, so that reading it as float32 loses nothing.
    assert given["scale"] == float(np.float32(given["scale"])) == int8_file.inputs[0].scale
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreters = [
        Interpreter(model_content=int8_file.content, experimental_op_resolver_type=resolver),
        Interpreter(model_content=int8_file.content),
    ]
    furthest = 0
    assert len(golden["samples"]) == 64
    for sample, image in zip(golden["samples"], samples, strict=True):
        real = read(sample["inputs"][0]["float"], "float32", given["shape"])
        codes = read(sample["inputs"][0]["quantized"], given["dtype"], given["shape"])
        np.testing.assert_array_equal(real[0], image)
        steps = np.float64(image) / given["scale"] + given["zero_point"]
        assert np.abs(codes[0] - np.clip(steps, -128, 127)).max() <= 0.5 + 1e-5
        outputs = []
        for interpreter in interpreters:
            interpreter.allocate_tensors()
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], codes)
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
        exact = read(sample["outputs"][0]["quantized"], "int8")
        np.testing.assert_array_equal(exact, outputs[0])
        np.testing.assert_array_equal(read(sample["outputs"][0]["xnnpack"], "int8"), outputs[1])
        furthest = max(furthest, *np.abs(outputs[0].astype(int) - outputs[1]).tolist())
        np.testing.assert_array_equal(
            read(sample["outputs"][0]["dequantized"], "float32"),
            (exact.astype(np.int32) - answered["zero_point"]).astype(np.float32)
            * np.float32(answered["scale"]),
        )
    assert golden["kernels"]["exact"] == "built-in"
    assert golden["kernels"]["xnnpack_steps"] == furthest


def test_the_file_is_named_by_its_digest(int8_file, tmp_path):
    path = int8_file.save(tmp_path / "student.tflite")
    model = golden_vectors(path, samples=1).to_dict()["model"]
    assert model == {
        "file": "student.tflite",
        "sha256": hashlib.sha256(int8_file.content).hexdigest(),
        "bytes": len(int8_file.content),
    }


def test_quantizer_codes_are_those_of_exact_arithmetic(int8_file):
    entries = golden_vectors(int8_file, samples=1).to_dict()["quantizer"]
    own = {(s.dtype, s.scale, s.zero_point) for s in (*int8_file.inputs, *int8_file.outputs)}
    assert own <= {(e["dtype"], e["scale"], e["zero_point"]) for e in entries}
    assert {entry["dtype"] for entry in entries} == {"int8", "uint8", "int16"}
    for entry in entries:
        scale, zero_point = np.float32(entry["scale"]), entry["zero_point"]
        info = np.iinfo(entry["dtype"])
        values = read(entry["values"], "float32")
        codes = read(entry["codes"], entry["dtype"])
        assert len(values) == len(codes) == entry["count"]
        for value, code in zip(values, codes, strict=True):
            with np.errstate(over="ignore"):
                quotient = float(value / scale)
            if isnan(quotient):
                expected = zero_point
            elif isinf(quotient):
                expected = info.max if quotient > 0 else info.min
            else:
                size = floor(abs(Fraction(quotient)) + Fraction(1, 2))
                expected = zero_point + (size if quotient > 0 else -size)
                expected = min(max(expected, info.min), info.max)
            assert code == expected, (entry["dtype"], entry["scale"], value)


def test_the_quantizer_is_tried_on_what_goes_wrong_first(int8_file):
    entries = golden_vectors(int8_file, samples=1).to_dict()["quantizer"]
    ones = [e for e in entries if (e["dtype"], e["scale"], e["zero_point"]) == ("int8", 1.0, 0)]
    values = read(ones[0]["values"], "float32")
    codes = dict(zip(values.tolist(), read(ones[0]["codes"], "int8").tolist(), strict=True))
    # Half away from zero, where rounding to even or floor(x + 0.5) gives another code.
    assert [codes[v] for v in (0.5, -0.5, 1.5, 2.5, -2.5)] == [1, -1, 2, 3, -3]
    assert codes[float(np.float32(0.49999997))] == 0
    assert [codes[v] for v in (127.5, -128.5, np.inf, -np.inf)] == [127, -128, 127, -128]
    assert codes[float(np.finfo(np.float32).smallest_subnormal)] == 0
    assert np.isnan(values).sum() == 2
    assert {np.signbit(v) for v in values[values == 0]} == {np.False_, np.True_}


def test_several_inputs_of_integers_and_floats_are_taken_by_name(token_file):
    tokens = np.array([[0, 1, 2], [9, 9, 9]])
    given = {"offset": np.array([[0.5, 0.0], [0.0, -1.0]]), "tokens": tokens}
    golden = golden_vectors(token_file, given).to_dict()
    names = [spec["name"] for spec in golden["inputs"]]
    assert sorted(names) == ["offset", "tokens"]
    by_name = dict(zip(names, golden["samples"][1]["inputs"], strict=True))
    assert read(by_name["tokens"]["quantized"], "int32").tolist() == [9, 9, 9]
    assert read(by_name["tokens"]["float"], "float32").tolist() == [9.0, 9.0, 9.0]
    assert by_name["offset"]["quantized"] == by_name["offset"]["float"]
    spec = golden["inputs"][names.index("tokens")]
    assert (spec["dtype"], spec["scale"], spec["zero_point"]) == ("int32", None, None)
    # Rows 0, 1, 2 of the table are (0, 1), (2, 3), (4, 5); row 9 is (18, 19).
    answers = [read(s["outputs"][0]["quantized"], "float32").tolist() for s in golden["samples"]]
    assert answers == [[6.5, 9.0], [54.0, 56.0]]
    assert golden["kernels"]["xnnpack_steps"] is None
    assert golden["kernels"]["xnnpack_difference"] == 0.0


def test_random_samples_fill_the_range_of_an_input_and_are_seeded(int8_file, token_file):
    golden = golden_vectors(int8_file, samples=20, seed=3)
    codes = np.stack([read(s["inputs"][0]["quantized"], "int8")
                      for s in golden.to_dict()["samples"]])  # fmt: skip
    # 1,280 values over 256 codes: nearly all codes are there, both ends among the outer ones.
    assert codes.shape == (20, 64)
    assert codes.min() <= -126
    assert codes.max() >= 125
    assert len(np.unique(codes)) > 200
    assert golden == golden_vectors(int8_file, samples=20, seed=3)
    assert golden != golden_vectors(int8_file, samples=20, seed=4)
    drawn = golden_vectors(token_file, samples=50, input_range=(3, 5)).to_dict()
    at = [spec["name"] for spec in drawn["inputs"]].index("tokens")
    tokens = {t for s in drawn["samples"] for t in read(s["inputs"][at]["quantized"], "int32")}
    assert tokens == {3, 4, 5}


def test_samples_are_spread_over_the_data(int8_file, samples):
    golden = golden_vectors(int8_file, samples, samples=4).to_dict()
    firsts = [read(s["inputs"][0]["float"], "float32")[0] for s in golden["samples"]]
    # Of 64 samples, four: 0, 21, 42 and 63.
    np.testing.assert_array_equal(firsts, samples[[0, 21, 42, 63], 0, 0, 0])
    assert golden_vectors(int8_file, samples[:3], samples=128).samples == 3


def test_codes_given_stay_codes(int8_file):
    codes = np.arange(-128, 128, dtype=np.int8).reshape(4, 8, 8, 1)
    golden = golden_vectors(int8_file, codes).to_dict()
    kept = [read(s["inputs"][0]["quantized"], "int8") for s in golden["samples"]]
    np.testing.assert_array_equal(np.stack(kept), codes.reshape(4, 64))
    spec = int8_file.inputs[0]
    real = read(golden["samples"][3]["inputs"][0]["float"], "float32")
    np.testing.assert_allclose(real, (np.arange(64, 128) - spec.zero_point) * spec.scale, rtol=1e-6)


def test_what_cannot_be_recorded_is_refused(int8_file, token_file):
    with pytest.raises(ConfigurationError, match=r"samples from 1 up\. Received: 0"):
        golden_vectors(int8_file, samples=0)
    with pytest.raises(ConfigurationError, match="low below high"):
        golden_vectors(int8_file, input_range=(1.0, 1.0))
    with pytest.raises(DataError, match=r"Expected shape \(samples, 8, 8, 1\)"):
        golden_vectors(int8_file, np.zeros((2, 4, 4, 1), np.float32))
    big = {"tokens": np.full((1, 3), 2**24 + 1, np.int32), "offset": np.zeros((1, 2))}
    with pytest.raises(DataError, match="up to 2\\^24 for input tokens"):
        golden_vectors(token_file, big)
    endless = {"tokens": np.zeros((1, 3), np.int32), "offset": np.full((1, 2), np.inf)}
    with pytest.raises(DataError, match="Expected finite outputs"):
        golden_vectors(token_file, endless)


def test_a_dtype_without_a_place_in_the_format_is_refused():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 3), tf.float32, name="x")])
    def model(x):
        return {"best": tf.argmax(x, axis=1)}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.get_concrete_function()])
    with pytest.raises(ModelFileError, match=r"Received: output \w+ of dtype int64"):
        golden_vectors(LiteModel(converter.convert()))


def test_the_file_is_written_whole_and_not_over_another(int8_file, tmp_path):
    golden = golden_vectors(int8_file, samples=2)
    path = golden.save(tmp_path / "golden.json")
    assert json.loads(path.read_text()) == golden.to_dict()
    with pytest.raises(OutputExistsError, match="exists already"):
        golden.save(path)
    assert [child.name for child in tmp_path.iterdir()] == ["golden.json"]
    assert golden.save(path, overwrite=True) == path
