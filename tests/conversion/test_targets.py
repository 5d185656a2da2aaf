"""Every target makes the file that it promises, or an error names what breaks the promise."""

import importlib.util

import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.conversion import TARGETS, convert, prove_target
from kdtflite.conversion.four_bits import quantize_to_int4
from kdtflite.errors import ConfigurationError, ConversionError, NotFullyIntegerError
from kdtflite.evaluation.footprint import macs, parameters
from kdtflite.lite.model import LiteModel
from kdtflite.lite.tensors import TensorSpec
from kdtflite.quantization import quantize_aware, strip

L = keras.layers
LAYERS = ["conv", "depthwise", "pointwise", "flat", "hidden", "logits"]


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).uniform(0, 1, (64, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def net():
    """Weights by layer: 864, 288, 2048, 16384 and 320; only two have 1,024 elements or more."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    h = L.Conv2D(32, 3, activation="relu", name="conv")(inputs)
    h = L.DepthwiseConv2D(3, activation="relu", name="depthwise")(h)
    h = L.Conv2D(64, 1, strides=2, activation="relu", name="pointwise")(h)
    h = L.Flatten(name="flat")(h)
    h = L.Dense(64, activation="relu", name="hidden")(h)
    return keras.Model(inputs, L.Dense(5, name="logits")(h), name="net")


@pytest.fixture(scope="module")
def files(net, pictures):
    """The net as each target's file."""
    return {name: convert(net, pictures, name, progress=False) for name in TARGETS}


@pytest.fixture(scope="module")
def aware(net, pictures):
    return quantize_aware(net, pictures)


def dense(*units, inputs=64, activation=None):
    keras.utils.set_random_seed(0)
    given = keras.Input((inputs,), name="x")
    h = given
    for i, size in enumerate(units):
        h = L.Dense(size, activation=activation, name=f"dense_{i}")(h)
    return keras.Model(given, h)


@pytest.mark.parametrize(
    ("target", "weights", "bias", "activation"),
    [
        ("int8", "int8 int8 int8 int8 int8", "int32", "int8"),
        ("int8x4", "int4 int8 int4 int4 int4", "int32", "int8"),
        ("int16x8", "int8 int8 int8 int8 int8", "int64", "int16"),
        ("float16", "float16 float16 float16 float16 float16", "float16", "float32"),
        ("dynamic", "float32 float32 int8 int8 float32", "float32", "float32"),
        ("int4", "int4 int8 int4 int4 int4", "float32", "float32"),
        ("int4_blockwise", "int4 int8 int4 int4 int4", "float32", "float32"),
        ("float32", "float32 float32 float32 float32 float32", "float32", "float32"),
    ],
)
def test_the_file_has_the_dtypes_that_its_target_promises(files, target, weights, bias, activation):
    lite = files[target]
    shapes = {
        (32, 3, 3, 3): "conv",
        (1, 3, 3, 32): "depthwise",
        (64, 1, 1, 32): "pointwise",
        (64, 256): "hidden",
        (5, 64): "logits",
    }
    found = {shapes[t.shape]: t.dtype for t in lite.tensors if t.is_constant and t.shape in shapes}
    order = ["conv", "depthwise", "pointwise", "hidden", "logits"]
    assert " ".join(found[name] for name in order) == weights
    proof = prove_target(lite, target, layers=LAYERS)
    assert sum(proof.weights.values()) == 5
    assert set(proof.biases) == {bias}
    assert set(proof.activations) == {activation}
    assert [end["dtype"] for end in (*proof.inputs, *proof.outputs)] == [activation] * 2
    kept = {row["layer"]: row["dtype"] for row in proof.to_dict()["kept"]}
    promised = TARGETS[target].weights
    assert kept == {name: dtype for name, dtype in found.items() if dtype != promised}
    assert proof.to_dict()["fully_integer"] is (target in ("int8", "int8x4", "int16x8"))
    assert proof.to_dict()["bytes"] == len(lite.content)
    assert sum(bar.get_height() for bar in proof.plot().patches) == sum(
        sum(count.values()) for count in (proof.weights, proof.biases, proof.activations)
    )
    assert f"Target {target}: weights " in str(proof)
    # XNNPACK has no int16 kernels: the built-in ones run those files.
    assert proof.invoked_with == ("built-in kernels" if target == "int16x8" else "XNNPACK")


# Measured, then doubled: the largest difference as a share of the largest logit.
DISTANCE = {
    "float32": 1e-5,
    "float16": 2e-3,
    "int16x8": 0.03,
    "dynamic": 0.03,
    "int8": 0.05,
    "int8x4": 0.4,
    "int4": 0.4,
    "int4_blockwise": 0.4,
}


@pytest.mark.parametrize("xnnpack", [True, False])
@pytest.mark.parametrize("target", DISTANCE)
def test_the_file_computes_what_the_float_model_does(files, net, pictures, target, xnnpack):
    wanted = net.predict(pictures, verbose=0)
    given = files[target].predict(pictures, xnnpack=xnnpack)
    assert given.dtype == np.float32
    assert np.abs(given - wanted).max() <= DISTANCE[target] * np.abs(wanted).max()


def test_fewer_bits_make_smaller_files(files):
    size = {target: len(lite.content) for target, lite in files.items()}
    assert size["int8x4"] < size["int8"]
    assert size["int4"] < size["int8"] < size["int16x8"] < size["float16"] < size["float32"]
    assert size["int4"] < size["int4_blockwise"] < size["int8"]
    assert size["int4"] < size["dynamic"] < size["float16"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_real_interpreter_measures_every_file(files, net, pictures, target):
    lite = files[target]
    labels = net.predict(pictures, verbose=0).argmax(axis=1)
    least = 0.7 if TARGETS[target].weights == "int4" else 0.95
    assert kdtflite.evaluate(lite, (pictures, labels)).accuracy >= least
    assert len(kdtflite.benchmark(lite, invokes=200).latencies[0].milliseconds) == 200
    assert macs(lite) == macs(net)
    # Weights, and the biases of three layers that have some (zeros are left out of the file) or
    # not: never the scales of blocks.
    assert 864 + 288 + 2048 + 16384 + 320 <= parameters(lite) <= parameters(net)


def test_blocks_of_32_weights_have_a_scale_if_every_kernel_is_right(files):
    blocks = {t.shape: t.block_size for t in files["int4_blockwise"].tensors if t.dtype == "int4"}
    # hidden has a ReLU fused into it, which LiteRT's built-in kernel for blocks leaves out.
    assert blocks == {(5, 64): 32, (64, 256): 0, (64, 1, 1, 32): 0, (32, 3, 3, 3): 0}
    scales = [t.shape for t in files["int4_blockwise"].tensors if t.dtype == "float16"]
    assert scales == [(5, 2)]


@pytest.mark.parametrize(("units", "inputs", "blocks"), [(3, 64, 0), (4, 64, 32), (8, 48, 0)])
def test_dense_layers_of_few_units_or_odd_inputs_keep_one_scale_per_channel(units, inputs, blocks):
    model = dense(units, inputs=inputs)
    content = quantize_to_int4(
        convert(model, target="float32", progress=False).content, block_size=32
    )
    lite = LiteModel(content)
    (weights,) = [t for t in lite.tensors if t.dtype == "int4"]
    assert (weights.shape, weights.block_size) == ((units, inputs), blocks)
    x = np.random.default_rng(0).normal(0, 1, (16, inputs)).astype(np.float32)
    for xnnpack in (True, False):
        difference = np.abs(lite.predict(x, xnnpack=xnnpack) - model(x).numpy()).max()
        assert difference < 0.25 * np.abs(model(x)).max()


def test_only_int8_uses_the_fake_quantization_of_a_quantization_aware_model(
    aware, net, files, pictures
):
    # The weights are the net's own: without the fake quantization the files are the net's.
    for target in ("float32", "float16", "int4"):
        lite = convert(aware, pictures, target, progress=False)
        assert not any(operator.name == "QUANTIZE" for operator in lite.operators)
        np.testing.assert_allclose(
            lite.predict(pictures), files[target].predict(pictures), atol=1e-5
        )
    wide = convert(aware, pictures, "int16x8", progress=False)
    # Calibrated anew: 32767 codes up to the largest value, not 255 over the trained range.
    np.testing.assert_allclose(wide.inputs[0].scale, pictures.max() / 32767, rtol=1e-3)
    assert convert(strip(aware), pictures, "int16x8", progress=False).content == wide.content


def test_int16_values_are_coded_by_hand():
    spec = TensorSpec("x", 0, (1, 5), (-1, 5), "int16", 0.5, 0)
    # 0.75 / 0.5 = 1.5, half away from zero: 2; beyond ±16384 the codes end.
    codes = spec.quantize([0.75, -0.75, 16383.5, 1e9, -1e9])
    np.testing.assert_array_equal(codes, np.int16([2, -2, 32767, 32767, -32768]))
    np.testing.assert_array_equal(spec.dequantize(codes), [1.0, -1.0, 16383.5, 16383.5, -16384.0])
    assert spec.range == (-16384.0, 16383.5)


@pytest.mark.parametrize(
    ("given", "target", "error", "message"),
    [
        ("float32", "int16x8", NotFullyIntegerError, r"CONV_2D reads the float32 .*layer 'conv'"),
        ("dynamic", "int8", NotFullyIntegerError, r"float32 tensor .*from layer 'conv'"),
        ("int8", "int16x8", ConversionError, r"CONV_2D writes the int8 tensor .*'conv' \(expected"),
        ("int16x8", "int8", ConversionError, r"reads the int64 bias .*\(expected int32\)"),
        ("float32", "float16", ConversionError, r"CONV_2D reads the float32 weights 'net/conv/"),
        ("float32", "dynamic", ConversionError, r"float32 weights .*layer 'pointwise' \(expected"),
        ("dynamic", "int4", ConversionError, r"CONV_2D reads the int8 weights .*\(expected int4\)"),
        ("int4", "int4_blockwise", ConversionError, r"'logits' with one scale per channel"),
        ("float16", "float32", ConversionError, r"reads the float16 weights .*'conv'"),
        ("int8", "float32", ConversionError, r"the input 'image' is int8 \(expected float32\)"),
    ],
)
def test_a_broken_promise_names_operator_tensor_and_layer(files, given, target, error, message):
    with pytest.raises(error, match=message) as raised:
        prove_target(files[given], target, layers=LAYERS)
    assert type(raised.value) is error


def test_a_target_that_changes_no_weight_is_refused():
    small = dense(8, 4)  # 512 and 32 weights: the converter leaves both as they are
    with pytest.raises(ConversionError, match=r"No weight .* int8.*fewer than 1,024 elements"):
        convert(small, target="dynamic", progress=False)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    depthwise = keras.Model(inputs, L.DepthwiseConv2D(3, name="depthwise")(inputs))
    with pytest.raises(ConversionError, match=r"No weight .* int4.*from layer 'depthwise'"):
        convert(depthwise, target="int4", progress=False)
    with pytest.raises(ConversionError, match=r"one scale per 32 weights.*Convert to 'int4'"):
        convert(dense(8, activation="relu"), target="int4_blockwise", progress=False)


def test_weights_beyond_float16_are_refused():
    model = dense(2, inputs=4)
    kernel = np.ones((4, 2), np.float32)
    kernel[1, 0] = -70000.0  # float16 ends at 65504
    model.get_layer("dense_0").set_weights([kernel, np.zeros(2)])
    with pytest.raises(ConversionError, match=r"'dense_0', some beyond .* 65504"):
        convert(model, target="float16", progress=False)
    kernel[1, 0] = -65000.0
    model.get_layer("dense_0").set_weights([kernel, np.zeros(2)])
    lite = convert(model, target="float16", progress=False)
    np.testing.assert_allclose(lite.predict(np.ones((1, 4), np.float32)), [[-64997, 4]], rtol=1e-3)


def test_an_operator_without_int16_kernel_is_named():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16,))
    model = keras.Model(inputs, L.PReLU(name="prelu")(L.Dense(8)(inputs)))
    x = np.random.default_rng(0).normal(0, 1, (20, 16)).astype(np.float32)
    with pytest.raises(NotFullyIntegerError, match="no int16 kernel for: PRELU"):
        convert(model, x, "int16x8", progress=False)


def test_an_embedding_keeps_its_integer_input_and_is_listed_if_it_stays_float():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32", name="words")
    h = L.GlobalAveragePooling1D()(L.Embedding(50, 32, name="table")(inputs))
    model = keras.Model(inputs, L.Dense(8, name="logits")(h))
    words = np.random.default_rng(0).integers(0, 50, (9, 6)).astype(np.int32)
    for target, dtype in (("dynamic", "int8"), ("float16", "float16"), ("int4", "float32")):
        lite = convert(model, target=target, progress=False)
        assert lite.inputs[0].dtype == "int32"
        assert {t.dtype for t in lite.tensors if t.is_constant and t.shape == (50, 32)} == {dtype}
        assert np.abs(lite.predict(words) - model(words).numpy()).max() < 0.02
    assert "(not int4: table)" in str(prove_target(lite, "int4", layers=["table", "logits"]))


def test_without_its_package_int4_says_how_to_install_it(net, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "litert_quantizer" else real(name, *rest),
    )
    with pytest.raises(ConfigurationError, match=r"'int4' needs .*pip install 'kdtflite\[edge\]'"):
        convert(net, target="int4")


def test_a_wrong_name_or_dtype_lists_the_valid_ones(net, files):
    every = "dynamic, float16, float32, int16x8, int4, int4_blockwise, int8, int8x4"
    with pytest.raises(ConfigurationError, match=f"'int4_block'.*'int4_blockwise'.*{every}"):
        convert(net, target="int4_block")
    with pytest.raises(ConfigurationError, match=every):
        prove_target(files["int8"], "uint4")
    with pytest.raises(ConfigurationError, match="one of: int16"):
        convert(net, target="int16x8", io_dtype="int8")
