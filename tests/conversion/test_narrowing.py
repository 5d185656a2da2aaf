"""Target int8x4: int4 weights with int8 activations, exactly those that were trained."""

import flatbuffers
import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

from kdtflite.conversion import convert, mixed_precision, prove_fully_integer, prove_target
from kdtflite.conversion.narrowing import find_int4_scales, narrow_weights, pack_int4
from kdtflite.errors import ConversionError, UnsupportedModelError
from kdtflite.lite.model import LiteModel
from kdtflite.quantization import quantize_aware

L = keras.layers
TARGET = "int8x4"


def read_weights(lite):
    """Codes and scales of each weights tensor by its shape, the codes unpacked by hand."""
    model, found = schema.ModelT.InitFromPackedBuf(lite.content), {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is None or tensor.type not in (schema.TensorType.INT4, schema.TensorType.INT8):
            continue
        shape = tuple(int(size) for size in tensor.shape)
        codes = np.asarray(data, np.uint8).view(np.int8)
        if tensor.type == schema.TensorType.INT4:
            halves = [half for byte in data.tolist() for half in (byte & 15, byte >> 4)]
            codes = np.array([half - 16 if half > 7 else half for half in halves])
            assert len(data) == (np.prod(shape) + 1) // 2
        codes = codes[: np.prod(shape)].reshape(shape)
        found[shape] = codes, np.asarray(tensor.quantization.scale), tensor.type
    return found


def widen(lite):
    """The same file with the same codes, each in a byte of its own."""
    model, weights = schema.ModelT.InitFromPackedBuf(lite.content), read_weights(lite)
    for tensor in model.subgraphs[0].tensors:
        if tensor.type == schema.TensorType.INT4:
            codes, _, _ = weights[tuple(int(size) for size in tensor.shape)]
            tensor.type = schema.TensorType.INT8
            model.buffers[tensor.buffer].data = codes.astype(np.int8).view(np.uint8).ravel()
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return LiteModel(bytes(builder.Output()))


def build(seed=0):
    """Odd numbers of weights everywhere: 3 · 3 · 1 · 5, 5 · 3 and 63 · 7."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1), name="image")
    h = L.Conv2D(5, 3, use_bias=False, name="conv")(inputs)
    h = L.BatchNormalization(name="norm")(h)
    h = L.ReLU(name="relu")(h)
    h = L.DepthwiseConv2D(3, activation="relu", strides=2, padding="same", name="depthwise")(h)
    h = L.Conv2D(7, 1, activation="relu", name="pointwise")(h)
    h = L.Conv2D(7, 1, activation="relu", padding="same", name="tail")(h)
    h = L.Flatten(name="flat")(h)
    return keras.Model(inputs, L.Dense(7, name="logits")(h), name="student")


def round_kernel(layer):
    return layer.weight_quantizers["kernel"](layer.layer.kernel, layer.weight_ranges["kernel"])


@pytest.fixture(scope="module")
def trained(images):
    """A student that was trained with four bits for a few steps, and its float model."""
    model = build()
    student = quantize_aware(model, images, weight_bits=4)
    y = (images.mean(axis=(1, 2, 3)) * 7).astype(int)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(0.003), loss)
    student.fit(images, y, epochs=3, batch_size=30, verbose=0)
    return student


@pytest.fixture(scope="module")
def integer_file(trained, images):
    return convert(trained, images, "int8", progress=False)


@pytest.fixture(scope="module")
def file(trained, images):
    return convert(trained, images, TARGET, progress=False)


def test_two_codes_share_a_byte_and_the_first_is_low():
    # In two's complement -1 is 1111, -7 is 1001 and -8 is 1000.
    codes = np.array([[1, -1], [7, -8], [-7, 0]], np.int8)
    assert pack_int4(codes).tolist() == [0xF1, 0x87, 0x09]
    assert pack_int4(codes.ravel()[:5]).tolist() == [0xF1, 0x87, 0x09]
    assert pack_int4(codes[:0]).tolist() == []
    assert pack_int4(np.arange(-8, 8)).tobytes().hex() == "98badcfe10325476"


def test_the_files_weights_are_those_that_were_trained(trained, file):
    stored = read_weights(file)
    norm = trained.get_layer("norm")
    folded = norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon)
    for name, shape, factor in (
        ("quant_conv", (5, 3, 3, 1), np.array(folded)),
        ("quant_logits", (7, 63), 1.0),
    ):
        kernel = round_kernel(trained.get_layer(name)).numpy() * factor
        codes, scales, dtype = stored[shape]
        assert dtype == schema.TensorType.INT4
        assert len(scales) == (5 if name == "quant_conv" else 1)
        real = codes * scales.reshape(-1, *[1] * (len(shape) - 1))
        np.testing.assert_allclose(
            real, np.moveaxis(kernel, -1, 0), rtol=1e-5, atol=1e-6 * np.abs(kernel).max()
        )
        assert 3 <= np.abs(codes).max() <= 7
    assert stored[1, 3, 3, 5][2] == schema.TensorType.INT8


def test_the_file_computes_what_the_student_does(trained, file, images):
    wanted = trained.predict(images, verbose=0)
    for xnnpack in (True, False):
        steps = (file.predict(images, xnnpack=xnnpack) - wanted) / file.outputs[0].scale
        assert np.abs(steps).max() <= 3
        assert np.abs(steps).mean() < 0.5


def test_weights_that_were_not_trained_with_four_bits_are_rounded_and_named(images, capsys):
    float_file = convert(build(), images, TARGET, progress=False)
    printed = " ".join(capsys.readouterr().err.split())
    assert "4 of 4 weights were not trained with four bits and are rounded" in printed
    assert "conv, pointwise, tail, logits" in printed
    assert "weight_bits=4" in printed
    # Rounded to at most half a step, or clipped where that makes the others better.
    kernel = build().get_layer("logits").kernel.numpy().T
    codes, scales, _ = read_weights(float_file)[7, 63]
    inside = np.abs(codes) < 7
    assert (np.abs(codes * scales[:, None] - kernel) <= 0.53 * scales[:, None])[inside].all()


def test_unpacked_codes_give_the_same_bits_on_the_built_in_kernels(file, images):
    given, wanted = (x.predict(images[:50], xnnpack=False) for x in (file, widen(file)))
    np.testing.assert_array_equal(given, wanted)


def test_it_is_proven_and_says_what_runs_it(file):
    proof = prove_target(file, TARGET, layers=["conv", "depthwise", "pointwise", "tail", "logits"])
    assert proof.weights == {"int4": 4, "int8": 1}
    assert [kept["layer"] for kept in proof.kept] == ["depthwise"]
    assert (set(proof.biases), set(proof.activations)) == ({"int32"}, {"int8"})
    assert proof.to_dict()["fully_integer"]
    assert proof.to_dict()["float_tensors"] == 0
    assert "weights 4 int4, 1 int8 (not int4: depthwise). LiteRT 2.3, Tensor" in proof.summary()
    assert (file.inputs[0].dtype, file.outputs[0].dtype) == ("int8", "int8")


def test_operators_have_the_version_from_which_kernels_take_int4(file):
    model = schema.ModelT.InitFromPackedBuf(file.content)
    versions = {code.builtinCode: code.version for code in model.operatorCodes}
    assert versions[schema.BuiltinOperator.CONV_2D] == 7
    assert versions[schema.BuiltinOperator.FULLY_CONNECTED] == 10


def test_weights_lie_at_multiples_of_16_bytes(file):
    model = schema.Model.GetRootAs(file.content, 0)
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        if buffer.DataLength():
            vector = buffer._tab.Vector(buffer._tab.Offset(4))
            assert vector % 16 == 0


def test_a_file_of_int8_weights_breaks_the_promise(integer_file):
    lite = integer_file
    with pytest.raises(ConversionError, match=r"int8 weights .*'conv' \(expected int4\)"):
        prove_target(lite, TARGET, layers=["conv"])
    # The same levels, each in a byte.
    codes, _, _ = read_weights(lite)[7, 63]
    assert max(len(np.unique(row)) for row in codes) <= 15


def test_kept_weights_stay_as_they_are(integer_file, images):
    lite = integer_file
    name = next(tensor.name for tensor in lite.tensors if tensor.shape == (7, 63))
    content, exact = narrow_weights(lite.content, keep=[name])
    narrowed = LiteModel(content)
    assert exact == dict.fromkeys(exact, True)
    assert len(exact) == 3
    np.testing.assert_array_equal(read_weights(narrowed)[7, 63][0], read_weights(lite)[7, 63][0])
    assert narrow_weights(content, keep=[name]) == (content, {})
    shift = narrowed.predict(images) - lite.predict(images)
    assert np.abs(shift).max() <= 3 * lite.outputs[0].scale


@pytest.mark.parametrize("greatest", range(1, 8))
def test_every_grid_of_fifteen_levels_is_found(greatest):
    codes = np.append(
        np.random.default_rng(greatest).integers(-greatest, greatest + 1, 40), greatest
    )
    stored = np.round(codes * 127 / greatest).astype(np.int8)[None]  # as the converter rounds
    steps, exact = find_int4_scales(stored, np.ones(1))
    assert exact
    # A grid of a half or a third as many levels holds the same values if only those occur.
    np.testing.assert_allclose(np.round(stored / steps) * steps, codes[None] * 127 / greatest)
    assert np.abs(np.round(stored / steps)).max() <= 7


def test_a_channel_of_zeros_keeps_its_scale_and_another_grid_is_not_exact():
    steps, exact = find_int4_scales(np.zeros((2, 9), np.int8), np.array([0.5, 2.0]))
    assert (steps.tolist(), exact) == ([0.5, 2.0], True)
    assert find_int4_scales(np.zeros((2, 9), np.int8), np.ones(2), shared=True)[0].tolist() == [1]
    steps, exact = find_int4_scales(np.array([[127, 18, 0], [127, 20, 0]], np.int8), np.ones(2))
    assert not exact
    assert steps[0] == 127 / 7  # 18 is the first of seven steps


def test_rows_that_share_a_grid_get_its_one_scale_back():
    # In steps of 0.5: 7 and 2; 4 and -2; nothing; 3 and -3. Each row has 127 for its largest.
    codes = np.array([[127, 36], [127, -64], [0, 0], [127, -127]], np.int8)
    scales = np.array([3.5, 2.0, 9.0, 1.5]) / 127
    found, exact = find_int4_scales(codes, scales, shared=True)
    assert exact
    np.testing.assert_allclose(found, [0.5])
    # A row that ends at 2.1 has no place on it, nor one that would need a code of 8.
    for end in (2.1, 4.0):
        scales[1] = end / 127
        found, exact = find_int4_scales(codes, scales, shared=True)
        assert (found.shape, exact) == ((1,), False)


def test_the_layers_that_suffer_most_from_four_bits_get_eight_within_a_budget(images):
    model, x = build(), images[:60]
    wanted = model.predict(x, verbose=0)
    integer = convert(model, images, progress=False).content

    def measure(*keep):
        given = LiteModel(narrow_weights(integer, keep=keep)[0]).predict(x)
        return np.square(given - wanted).mean() / np.square(wanted).mean()

    weights = {name.split("/")[1]: name for name in narrow_weights(integer)[1]}
    errors = {layer: measure(name) for layer, name in weights.items()}
    # The 441 weights of the last layer take 220 bytes more in eight bits.
    budget = len(narrow_weights(integer)[0]) + 150
    mixed = mixed_precision(model, images, validation=x, wide="int8", budget_bytes=budget)
    assert mixed.ranking == pytest.approx(errors)
    assert mixed.steps[0].bytes == len(narrow_weights(integer)[0])
    assert mixed.steps[0].error == pytest.approx(measure())
    taken = [step.layer for step in mixed.steps[1:]]
    assert taken
    assert "logits" not in taken
    assert mixed.steps[-1].error == pytest.approx(measure(*(weights[layer] for layer in taken)))
    assert len(mixed.file.content) <= budget
    dtypes = [tensor.dtype for tensor in mixed.file.tensors if tensor.is_constant]
    assert dtypes.count("int4") == 4 - len(taken)
    assert prove_fully_integer(mixed.file).input["dtype"] == "int8"
    assert f"Kept {len(taken)} of 4 weights in int8: error (mse)" in mixed.summary()
    assert "(all in int4)" in str(mixed)
    with pytest.raises(UnsupportedModelError, match="Expected a Keras model with wide='int8'"):
        mixed_precision(mixed.file, images, wide="int8", keep=1)
