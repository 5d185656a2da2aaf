"""An ONNX file as a teacher: built by hand, with weights that are known."""

import sys

import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf_keras as keras
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit, log_softmax, softmax

from kdtflite.distillation import Distiller
from kdtflite.distillation.teachers.onnx import OnnxTeacher
from kdtflite.distillation.teachers.onnx_graph import external_files, read_onnx
from kdtflite.errors import ConfigurationError, ModelFileError, ShapeMismatchError

L = keras.layers
RNG = np.random.default_rng(0)
W = RNG.normal(0, 1, (4, 3)).astype(np.float32)
B = RNG.normal(0, 1, 3).astype(np.float32)
X = RNG.normal(0, 1, (7, 4)).astype(np.float32)


def saved(path, nodes, inputs, outputs, weights, opset=13):
    """Writes a graph; `inputs` and `outputs` are shapes by name, float unless a dtype is given."""
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def dense(path, *after, batch="N", given=TensorProto.FLOAT, shape=("N", 3), opset=13):
    """A linear layer, then the operators `after`, each of one input."""
    nodes, last = [], "x"
    if given != TensorProto.FLOAT:
        nodes, last = [helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT)], "cast"
    nodes.append(helper.make_node("Gemm", [last, "w", "b"], ["z0"]))
    for i, (operator, attributes) in enumerate(after):
        nodes.append(helper.make_node(operator, [f"z{i}"], [f"z{i + 1}"], **attributes))
    name = f"z{len(after)}"
    return saved(
        path,
        nodes,
        {"x": (given, [batch, 4])},
        {name: (TensorProto.FLOAT, shape)},
        {"w": W, "b": B},
        opset,
    )


def student(*shape, classes=3):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape or (4,)), L.Flatten(), L.Dense(classes)])


def in_a_step(teacher, *shape):
    return tf.function(
        lambda x: teacher.observe(x).logits,
        input_signature=[tf.TensorSpec((None, *(shape or (4,))))],
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "teacher.onnx"


ENDS = {
    "logits": ((), lambda z: z),
    "softmax": ((("Softmax", {"axis": -1}),), lambda z: log_softmax(z, axis=-1)),
    "softmax_default_axis": ((("Softmax", {}),), lambda z: log_softmax(z, axis=-1)),
    "log_softmax": ((("LogSoftmax", {"axis": 1}),), lambda z: log_softmax(z, axis=-1)),
    "sigmoid": ((("Sigmoid", {}),), lambda z: z),
    "identity": ((("Softmax", {"axis": 1}), ("Identity", {})), lambda z: log_softmax(z, axis=-1)),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_a_file_gives_is_read_off_its_end_and_turned_into_logits(path, end):
    after, formula = ENDS[end]
    teacher = OnnxTeacher(dense(path, *after))
    kinds = {"sigmoid": "sigmoid", "logits": "logits", "log_softmax": "logits"}
    assert teacher.outputs == kinds.get(end, "probabilities")
    assert teacher.output_shape == (None, 3)
    expected = formula(np.float64(X) @ W + B)
    np.testing.assert_allclose(in_a_step(teacher)(X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "opset"),
    [((("Relu", {}),), 13), ((("Softmax", {"axis": 0}),), 13), ((("Exp", {}),), 13)],
)
def test_an_end_that_shows_nothing_has_to_be_explained(path, after, opset):
    dense(path, *after, opset=opset)
    with pytest.raises(ConfigurationError, match=r'does not show.*Pass outputs="logits"'):
        OnnxTeacher(path)
    assert OnnxTeacher(path, outputs="values").outputs == "values"


@pytest.mark.parametrize(
    ("operator", "seen"), [("Softmax", "probabilities"), ("Sigmoid", "sigmoid")]
)
def test_a_file_that_shows_no_logits_is_not_believed_to_give_them(path, operator, seen):
    dense(path, (operator, {}), ("Identity", {}))
    with pytest.raises(ConfigurationError, match=rf'are logits.*Pass outputs="{seen}" or "auto"'):
        OnnxTeacher(path, outputs="logits")
    assert OnnxTeacher(path, outputs=seen).outputs == seen


def test_before_version_13_softmax_began_at_axis_1(path):
    assert OnnxTeacher(dense(path, ("Softmax", {}), opset=11)).outputs == "probabilities"


def conv(path, *, batch="N", size=(6, 5), channels=2):
    """Weights times the means of the channels of images with the channels first."""
    weights = {"w": W[:channels], "b": B}
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
    ]
    inputs = {"image": (TensorProto.FLOAT, [batch, channels, *size])}
    return saved(path, nodes, inputs, {"logits": (TensorProto.FLOAT, [batch, 3])}, weights)


def test_images_are_transposed_for_a_file_with_the_channels_first(path):
    images = RNG.normal(0, 1, (5, 6, 5, 2)).astype(np.float32)
    expected = np.float64(images).mean(axis=(1, 2)) @ W[:2] + B
    for layout in ("auto", "channels_first"):
        teacher = OnnxTeacher(conv(path), input_layout=layout)
        step = in_a_step(teacher, 6, 5, 2)
        np.testing.assert_allclose(step(images), expected, rtol=1e-4, atol=1e-5)
        teacher.check_inputs(student(6, 5, 2))
        np.testing.assert_allclose(teacher(images), expected, rtol=1e-4, atol=1e-5)
    same = OnnxTeacher(path, input_layout="auto")
    moved = images.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(same(moved), expected, rtol=1e-4, atol=1e-5)


def test_after_the_check_batches_of_unknown_shape_are_transposed_too(path):
    images = RNG.normal(0, 1, (5, 6, 5, 2)).astype(np.float32)
    teacher = OnnxTeacher(conv(path))
    teacher.check_inputs(student(6, 5, 2))
    step = tf.function(teacher, input_signature=[tf.TensorSpec(None)])
    expected = np.float64(images).mean(axis=(1, 2)) @ W[:2] + B
    np.testing.assert_allclose(step(images), expected, rtol=1e-4, atol=1e-5)


def test_a_layout_that_cannot_be_told_or_does_not_fit_is_refused(path):
    conv(path, size=(2, 2))
    with pytest.raises(ConfigurationError, match=r"\(None, 2, 2, 2\).*fits as it is and with"):
        OnnxTeacher(path).check_inputs(student(2, 2, 2))
    OnnxTeacher(path, input_layout="same").check_inputs(student(2, 2, 2))
    conv(path, size=("H", "V"))
    with pytest.raises(ConfigurationError, match=r"Pass input_layout="):
        OnnxTeacher(path).check_inputs(student(2, 2, 2))
    with pytest.raises(ShapeMismatchError, match=r"teacher input \(None, 2, None, None\)"):
        OnnxTeacher(path).check_inputs(student(6, 6, 3))
    with pytest.raises(ConfigurationError, match=r"no input_layout 'nchw'"):
        OnnxTeacher(path, input_layout="nchw")


@pytest.mark.parametrize("fixed", [1, 3])
def test_a_file_with_a_fixed_batch_is_run_several_times(path, fixed):
    teacher = OnnxTeacher(dense(path, batch=fixed, shape=(fixed, 3)))
    expected = np.float64(X) @ W + B
    step = in_a_step(teacher)
    np.testing.assert_allclose(step(X), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step(X[:3]), expected[:3], rtol=1e-4, atol=1e-5)
    assert step(X[:0]).shape == (0, 3)


def test_a_shape_that_the_file_leaves_open_is_learned(path):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"]),
        helper.make_node("Compress", ["z", "which"], ["picked"], axis=1),
    ]
    weights = {"w": W, "b": B, "which": np.array([True, False, True])}
    shape = {"x": (TensorProto.FLOAT, ["N", 4])}
    saved(path, nodes, shape, {"picked": (TensorProto.FLOAT, ["N", "classes"])}, weights)
    teacher = OnnxTeacher(path, outputs="logits")
    with pytest.raises(ConfigurationError, match=r"not known"):
        _ = teacher.output_shape
    teacher.check_inputs(student())
    assert teacher.output_shape == (None, 2)


def test_other_dtypes_are_converted_where_nothing_is_lost(path):
    teacher = OnnxTeacher(dense(path))
    pixels = RNG.integers(0, 256, (5, 4)).astype(np.uint8)
    np.testing.assert_allclose(teacher(pixels), np.float64(pixels) @ W + B, rtol=1e-4)
    takes_pixels = OnnxTeacher(dense(path, given=TensorProto.UINT8))
    np.testing.assert_allclose(takes_pixels(pixels), np.float64(pixels) @ W + B, rtol=1e-4)
    with pytest.raises(ConfigurationError, match=r"takes tensor\(uint8\).*float32.*preprocessing="):
        takes_pixels(X)


def test_a_student_learns_from_a_file(path):
    dense(path, ("Softmax", {"axis": 1}))
    distiller = Distiller(student(), path, hard_label_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.05))
    history = distiller.fit(X, np.zeros(7, np.int64), batch_size=4, epochs=20, verbose=0).history
    assert history["soft_targets_loss"][-1] < 0.5 * history["soft_targets_loss"][0]
    probabilities = softmax(np.float64(X) @ W + B, axis=-1)
    logits = distiller.teacher(X)
    np.testing.assert_allclose(tf.exp(logits), probabilities, rtol=1e-4, atol=1e-6)


def test_several_inputs_and_outputs_go_by_name(path):
    nodes = [
        helper.make_node("Sub", ["left", "right"], ["x"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["labels"]),
    ]
    shape = (TensorProto.FLOAT, ["N", 4])
    out = (TensorProto.FLOAT, ["N", 3])
    saved(
        path,
        nodes,
        {"left": shape, "right": shape},
        {"logits": out, "labels": out},
        {"w": W, "b": B},
    )
    with pytest.raises(ConfigurationError, match=r"2 outputs.*logits, labels"):
        OnnxTeacher(path)
    teacher = OnnxTeacher(path, output="labels")
    assert teacher.outputs == "sigmoid"
    expected = expit(np.float64(2 * X) @ W + B)
    given = {"right": X, "left": 3 * X}
    np.testing.assert_allclose(tf.sigmoid(teacher(given)), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigurationError, match=r"named left, right\. Expected a dict"):
        teacher((X, X))


def test_files_that_are_none_are_refused(tmp_path, path):
    with pytest.raises(ModelFileError, match=r"does not exist"):
        OnnxTeacher(path)
    for content in (b"", b"no protobuf at all", b"PK\x03\x04" + b"\0" * 50):
        path.write_bytes(content)
        with pytest.raises(
            ModelFileError, match=r"onnxruntime does not take.*Export the model again"
        ):
            OnnxTeacher(path)


def test_providers_that_are_not_there_are_refused(path):
    dense(path)
    assert OnnxTeacher(path, providers=["CPUExecutionProvider"])(X).shape == (7, 3)
    with pytest.raises(ConfigurationError, match=r"no execution provider of onnxruntime 'GPU'"):
        OnnxTeacher(path, providers=["GPU"])


def test_without_onnxruntime_it_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigurationError, match=r'pip install "kdtflite\[onnx\]"'):
        OnnxTeacher(dense(path))


def test_the_fingerprint_covers_weights_in_files_beside_it(path):
    big = RNG.normal(0, 1, (4, 3)).astype(np.float32)

    def written(value):
        model = onnx.load(dense(path))
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(value, "w"))
        onnx.save_model(
            model, path, save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        return OnnxTeacher(path)

    first = written(big)
    np.testing.assert_allclose(first(X), np.float64(X) @ big + B, rtol=1e-4, atol=1e-5)
    same, other = written(big).fingerprint(), written(big + 1).fingerprint()
    assert len(same) == 64
    assert same != other


@pytest.mark.parametrize("location", ["../secret", "absolute", "link", "deep/../../secret"])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_weights_from_another_folder_are_refused(tmp_path, path, location, place):
    secret = tmp_path.parent / "secret"
    secret.write_bytes(bytes(48))
    if location == "link":
        (path.parent / "link").symlink_to(secret)
    model = onnx.load(dense(path))
    if place == "initializer":
        tensor = model.graph.initializer[0]
    else:
        node = model.graph.node.add(op_type="Constant", output=["evil"])
        tensor = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
        tensor.data_type, tensor.dims[:] = onnx.TensorProto.FLOAT, [4, 3]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    name = str(secret) if location == "absolute" else location
    tensor.external_data.add(key="location", value=name)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"takes weights from '.*Expected files beside it"):
        OnnxTeacher(path)


def test_weights_that_a_cache_of_downloads_links_are_read(tmp_path, path):
    model = onnx.load(dense(path))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    cache, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    cache.mkdir()
    snapshot.mkdir()
    onnx.save_model(
        *(model, cache / "model.onnx"),
        **{"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0},
    )
    for name in ("model.onnx", "weights.bin"):
        (snapshot / name).symlink_to(cache / name)
    graph = read_onnx(snapshot / "model.onnx")
    assert external_files(graph, snapshot / "model.onnx") == [snapshot / "weights.bin"]


def test_an_operator_that_runs_other_code_is_refused(path):
    model = onnx.load(dense(path))
    model.graph.node.add(op_type="EPContext", domain="com.microsoft", output=["evil"])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"uses the operator EPContext.*unsafe=True"):
        OnnxTeacher(path)
    with pytest.raises(ModelFileError, match="onnxruntime does not take"):
        OnnxTeacher(path, unsafe=True)


def test_unsafe_takes_weights_from_anywhere(tmp_path, path):
    model = onnx.load(dense(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    assert external_files(read_onnx(path), path, unsafe=True) == [tmp_path / "../secret"]


@pytest.mark.parametrize("place", ["initializer", "attribute", "sparse"])
def test_constants_far_larger_than_the_file_are_refused(path, place):
    model = onnx.load(dense(path))
    if place == "initializer":
        tensor = model.graph.initializer[0]
    elif place == "attribute":
        node = model.graph.node.add(op_type="Constant", output=["evil"])
        tensor = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
    else:
        tensor = model.graph.sparse_initializer.add()
    holder = tensor if place != "sparse" else tensor.values
    holder.data_type, tensor.dims[:] = onnx.TensorProto.DOUBLE, [1 << 20, 1 << 14]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match=r"constants would take 128 GiB .*unsafe=True"):
        OnnxTeacher(path)
