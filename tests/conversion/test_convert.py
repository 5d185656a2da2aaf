"""convert returns a file that is what the target promises, or says why it cannot be."""

import json
import re
import signal
import stat

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.conversion import worker
from kdtflite.conversion.convert import _to_identifiers, convert
from kdtflite.conversion.converter_process import server
from kdtflite.conversion.integer_proof import prove_fully_integer
from kdtflite.distillation import Distiller
from kdtflite.errors import (
    ConfigurationError,
    ConversionError,
    DataError,
    ModelFileError,
    NotFullyIntegerError,
    UnsupportedModelError,
)

L = keras.layers


def network(*layers, shape=(8, 8, 1)):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="image")
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def test_the_file_and_the_quantization_aware_student_agree(student, int8_file, images):
    wanted = student.predict(images, verbose=0)
    given = int8_file.predict(images)
    assert (given.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.99
    steps = np.abs(given - wanted) / int8_file.outputs[0].scale
    assert steps.max() <= 2.001


def test_the_int8_file_is_int8_from_end_to_end(int8_file, student):
    assert [spec.dtype for spec in (*int8_file.inputs, *int8_file.outputs)] == ["int8", "int8"]
    assert int8_file.inputs[0].name == "image"
    assert int8_file.outputs[0].name == "logits"
    assert {tensor.dtype for tensor in int8_file.tensors} <= {"int8", "int32"}
    # The trained ranges are the file's: (high - low) / 255.
    low, high = (
        float(weight)
        for weight in student.get_layer("quant_logits").weights
        if re.search("output_(min|max)", weight.name)
    )
    np.testing.assert_allclose(int8_file.outputs[0].scale, (high - low) / 255, rtol=0.01)
    np.testing.assert_allclose(int8_file.inputs[0].scale, 1 / 255, rtol=0.01)


def test_the_proof_lists_every_operator_with_its_layer(int8_file):
    proof = prove_fully_integer(int8_file, layers=["conv", "depthwise", "flat", "logits"])
    assert [(row["name"], row["layer"]) for row in proof.operators] == [
        ("CONV_2D", "conv"),
        ("DEPTHWISE_CONV_2D", "depthwise"),
        ("RESHAPE", "flat"),
        ("FULLY_CONNECTED", "logits"),
    ]
    assert proof.operators[0]["inputs"] == ["int8", "int8", "int32"]
    assert sum(proof.tensor_dtypes.values()) == len(int8_file.tensors)
    assert proof.invoked_with == "XNNPACK"
    assert proof.to_dict()["float_tensors"] == 0
    assert proof.to_table().row_count == 4
    assert str(proof).endswith("int8 in, int8 out; ran once with XNNPACK.")
    heights = [bar.get_height() for bar in proof.plot().patches]
    assert heights == list(proof.tensor_dtypes.values())
    assert proof.to_dict()["bytes"] == len(int8_file.content)


def test_the_form_of_the_data_does_not_change_the_bytes(student, int8_file, images):
    def batches():
        for start in range(0, 300, 7):
            yield [images[start : start + 7]]

    assert convert(student, batches, progress=False).content == int8_file.content


def test_uint8_inputs_and_outputs(student, int8_file, images):
    lite = convert(student, images, io_dtype="uint8", progress=False)
    assert (lite.inputs[0].dtype, lite.outputs[0].dtype) == ("uint8", "uint8")
    assert lite.inputs[0].zero_point == int8_file.inputs[0].zero_point + 128
    # A byte of a picture is the code of its value: 255 is 1.0 and 0 is 0.0.
    np.testing.assert_array_equal(lite.inputs[0].quantize([0.0, 1.0]), np.uint8([0, 255]))
    np.testing.assert_array_equal(
        lite.predict(images, dequantize=False).astype(int) - 128,
        int8_file.predict(images, dequantize=False),
    )


def test_a_distillers_student_is_converted(student, int8_file, images):
    distiller = Distiller(student, None, losses=[])
    assert convert(distiller, images, progress=False).content == int8_file.content


def test_the_float_target_is_the_float_model(images):
    model = network(L.Conv2D(4, 3, activation="elu"), L.Flatten(), L.Dense(3, name="out"))
    lite = convert(model, target="float32", progress=False)
    assert lite.inputs[0].dtype == lite.outputs[0].dtype == "float32"
    np.testing.assert_allclose(lite.predict(images), model.predict(images, verbose=0), atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "shape", "operator", "layer"),
    [
        (
            (L.Conv2D(2, 3, name="before"), L.ELU(name="the_elu"), L.Flatten()),
            (8, 8, 1),
            "ELU",
            "the_elu",
        ),
        ((L.Conv3D(2, 3, name="the_conv3d"), L.Flatten()), (6, 6, 6, 1), "CONV_3D", "the_conv3d"),
    ],
)
def test_an_operator_without_integer_kernel_is_named(layers, shape, operator, layer):
    model = network(*layers, L.Dense(2, name="out"), shape=shape)
    data = np.random.default_rng(0).uniform(0, 1, (40, *shape)).astype(np.float32)
    with pytest.raises(NotFullyIntegerError) as error:
        convert(model, data, progress=False)
    message = str(error.value)
    assert re.search(rf"operator \d+ {operator} reads the float32 tensor '.+'", message), message
    assert set(re.findall("from layer '(.+?)'", message)) == {layer}


def test_inputs_are_matched_by_name_not_by_order():
    first, second = keras.Input((3,), name="z_first"), keras.Input((3,), name="a_second")
    keras.utils.set_random_seed(0)
    model = keras.Model([first, second], L.Subtract(name="difference")([first, second]))
    rng = np.random.default_rng(0)
    data = {
        "a_second": rng.uniform(0, 1, (50, 3)).astype(np.float32),
        "z_first": rng.uniform(0, 9, (50, 3)).astype(np.float32),
    }
    lite = convert(model, data, progress=False)
    scales = {spec.name: spec.scale for spec in lite.inputs}
    np.testing.assert_allclose(scales["z_first"], data["z_first"].max() / 255, rtol=1e-3)
    np.testing.assert_allclose(scales["a_second"], data["a_second"].max() / 255, rtol=1e-3)
    step = lite.outputs[0].scale
    np.testing.assert_allclose(
        lite.predict(data), data["z_first"] - data["a_second"], atol=2 * step
    )
    with pytest.raises(DataError, match="2 inputs"):
        convert(model, data["z_first"], progress=False)


def test_a_keras3_model_whose_names_are_not_identifiers():
    k = keras3.layers
    keras3.utils.set_random_seed(0)
    inputs = k.Input((6,), name="class")
    model = keras3.Model(inputs, k.Dense(3, name="log-its")(k.Dense(8, activation="relu")(inputs)))
    data = np.random.default_rng(0).normal(0, 1, (60, 6)).astype(np.float32)
    lite = convert(model, {"class": data}, progress=False)
    assert (lite.inputs[0].name, lite.outputs[0].name) == ("x_class", "log_its")
    step = lite.outputs[0].scale
    np.testing.assert_allclose(lite.predict(data), model(data), atol=4 * step)


def test_names_become_distinct_identifiers():
    assert _to_identifiers(["a-b", "a b", "1st", "def", "fine"]) == [
        "a_b",
        "a_b_",
        "x_1st",
        "x_def",
        "fine",
    ]


def test_a_saved_model_folder(images, tmp_path):
    model = network(L.Flatten(), L.Dense(3, name="out"))
    model.export(tmp_path / "saved")
    lite = convert(tmp_path / "saved", images, progress=False)
    step = lite.outputs[0].scale
    np.testing.assert_allclose(lite.predict(images), model(images), atol=2 * step)


def test_anything_but_a_saved_model_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="Expected a SavedModel folder"):
        convert(tmp_path)
    for path in (tmp_path / "missing", str(tmp_path / "model.keras")):
        with pytest.raises(ModelFileError, match=r"There is no file .* or a SavedModel folder"):
            convert(path)
    (tmp_path / "saved_model.pb").write_bytes(b"no protocol buffer at all")
    with pytest.raises(ModelFileError, match=r"saved_model\.pb is damaged"):
        convert(tmp_path)
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(ModelFileError, match="no signature 'serving_default'"):
        convert(tmp_path / "bare")


def _answer(kind, value=None):
    return f"echo '{json.dumps([kind, value])}'"


def _end(code):
    return _answer("ended", {"code": code}) + "; read -r another"


@pytest.fixture
def converter(monkeypatch, tmp_path):
    """Replaces the converter's process by a shell script that takes a job."""
    start = r"""read -r job; folder=$(echo "$job" | sed 's/.*"folder": "\([^"]*\)".*/\1/')"""

    def put(script):
        server.stop()
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{start}\n{_answer('started')}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr("sys.executable", str(path))

    yield put
    server.stop()


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Lists what conversions leave behind in the folder for temporary files."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda: sorted(path.name for path in tmp_path.glob("kdtflite-*"))


@pytest.mark.parametrize("alone", [True, False], ids=["the process", "its job"])
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_crash_of_the_converter_is_reported_as_one(converter, folders, images, name, alone):
    number = int(getattr(signal, name))
    ends = f"kill -{number} $$" if alone else _end(-number)
    log = "/dev/stderr" if alone else '"$folder/log.txt"'
    converter(f"{_answer('sent', 'sample')}; echo 'loc: error: dying' > {log}; {ends}")
    model = network(L.Flatten(), L.Dense(2))
    with pytest.raises(ConversionError, match=rf"crashed \({name}\).*dying") as error:
        convert(model, images)
    assert not isinstance(error.value, NotFullyIntegerError)
    assert folders() == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -KILL $$", "was killed by the system, most likely because the memory was not"),
        ('echo "what():  std::bad_alloc" >&2; kill -ABRT $$', "the memory was not enough"),
        (
            'echo "LLVM ERROR: out of memory" > "$folder/log.txt"; ' + _end(-6),
            "the memory was not enough",
        ),
        (
            'echo "MemoryError: " > "$folder/error.txt"; ' + _end(1),
            "The memory was not enough for",
        ),
        ('echo "x.so: failed to map segment from shared object" >&2; exit 1', "The memory was"),
        ("kill -TERM $$", r"was stopped from outside \(SIGTERM\). Nothing is wrong with the model"),
    ],
)
def test_a_converter_that_had_too_little_memory_or_was_stopped_does_not_blame_the_model(
    converter, folders, images, script, message
):
    converter(script)
    with pytest.raises(ConversionError, match=message) as error:
        convert(network(L.Flatten(), L.Dense(2)), images)
    assert "Leave out layers" not in str(error.value)
    assert folders() == []


def test_a_crash_under_a_limit_of_memory_names_the_limit(converter, folders, images):
    import resource

    converter("kill -SEGV $$")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**46, hard))
    try:
        with pytest.raises(ConversionError, match=r"limited \(ulimit -v\), which is the likely"):
            convert(network(L.Flatten(), L.Dense(2)), images)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert folders() == []


def test_a_failure_of_the_converter_is_quoted(converter, folders, images):
    model = network(L.Flatten(), L.Dense(2, name="head"))
    converter('echo "ConverterError: no such thing" > "$folder/error.txt"; exit 1')
    with pytest.raises(ConversionError, match="converter failed: ConverterError: no such thing"):
        convert(model, images)
    converter("""echo "'tf.Foo' op is neither a custom op (head)" > "$folder/error.txt"; exit 1""")
    with pytest.raises(NotFullyIntegerError, match="no int8 kernel for: Foo, from layer 'head'"):
        convert(model, images)
    with pytest.raises(ConversionError, match=r"converter failed: 'tf\.Foo' op") as error:
        convert(model, target="float32")
    assert not isinstance(error.value, NotFullyIntegerError)
    converter('echo "OSError: No space left on device" >&2; exit 1')
    with pytest.raises(ConversionError, match="The disk is full"):
        convert(model, images)
    assert folders() == []


def test_the_worker_leaves_its_error_for_the_parent(tmp_path):
    (tmp_path / "job.json").write_text(
        '{"model": "nowhere", "target": "float32", "io_dtype": "float32", "inputs": []}'
    )
    assert worker.convert_folder(tmp_path) == 1
    assert "nowhere" in (tmp_path / "error.txt").read_text()
    assert not (tmp_path / "model.tflite").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "Expected representative data"),
        (np.zeros((40, 4, 4, 1), np.float32), r"\('samples', 8, 8, 1\).*\(40, 4, 4, 1\)"),
        (np.zeros((0, 8, 8, 1), np.float32), "at least one sample"),
        (np.full((40, 8, 8, 1), np.nan, np.float32), "40 of 40 samples"),
        (np.full((40, 8, 8, 1), "a"), "to be numbers"),
        ({"other": np.zeros((40, 8, 8, 1))}, "inputs image. Received: other"),
    ],
)
def test_representative_data_are_checked_before_the_converter_runs(
    converter, folders, data, message
):
    converter("exit 3")
    with pytest.raises(DataError, match=message):
        convert(network(L.Flatten(), L.Dense(2)), data)
    assert folders() == []


def test_data_scaled_differently_than_in_training_are_refused(student, images):
    with pytest.raises(DataError, match=r"as in training, from 0 to 0\.99.* to 254\.8"):
        convert(student, 255 * images)
    model = network(L.Flatten(), L.Dense(2))
    with pytest.raises(DataError, match=r"from 0 to 255\. Received values from 0"):
        convert(model, images, input_range=(0.0, 255.0))


def test_unknown_targets_and_dtypes_list_the_valid_ones(images):
    model = network(L.Flatten(), L.Dense(2))
    with pytest.raises(ConfigurationError, match=r"'int9'.*Did you mean 'int8'.*float32, .*int8"):
        convert(model, images, target="int9")
    with pytest.raises(ConfigurationError, match="one of: int8, uint8"):
        convert(model, images, io_dtype="int16")
    with pytest.raises(ConfigurationError, match="one of: float32"):
        convert(model, images, target="float32", io_dtype="int8")
    with pytest.raises(UnsupportedModelError, match="Expected a Keras model"):
        convert(None, images)
