"""pack: fewer bytes, and nothing else changes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st

import kdtflite
from kdtflite.errors import ConfigurationError, ModelFileError
from kdtflite.lite import LiteModel, packing
from kdtflite.lite.flatbuffer_layout import LAYOUT
from kdtflite.lite.flatbuffer_tree import Table, Tables, TreeReader, Vector
from kdtflite.lite.flatbuffer_writing import write_tree
from kdtflite.lite.kernel_sets import compare_outputs, require_equal_outputs
from kdtflite.lite.trial import KERNEL_SETS
from kdtflite.lite.verification import verify_flatbuffer

MODELS = Path(__file__).resolve().parents[2] / "android_demo" / "models"
# Bytes before, and with all names, those of layers, and none. By hand, with the object API of the
# generated schema, 21,404 and 18,004; 38,984 and 33,216; 89,992 and 86,568 were reached.
SHIPPED = {
    "digits.tflite": (11_701, 9_989, 8_533, 8_037),
    "mnist.tflite": (25_619, 21_395, 18_851, 17_971),
}
REFERENCES = {
    "kws_ref_model.tflite": (53_936, 38_848, 34_064, 33_056),
    "pretrainedResnet_quant.tflite": (98_496, 89_824, 87_216, 86_400),
    "pretrainedResnet.tflite": (318_144, 317_488, 314_880, 314_064),
}


@pytest.fixture(scope="module")
def mnist():
    return LiteModel.load(MODELS / "mnist.tflite")


def unpack(content):
    """Returns everything that the generated schema reads, as plain values."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, list):
            return [plain(each) for each in value]
        return (
            {k: plain(v) for k, v in vars(value).items()} if hasattr(value, "__dict__") else value
        )

    return plain(schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0)))


def edit(content, change):
    """Returns the file after `change(model)`, written by the generated schema."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    change(model)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def check_sizes(path, sizes):
    lite = LiteModel.load(path)
    packed = [kdtflite.pack(lite, names) for names in packing.NAMES]
    assert [len(each.content) for each in (lite, *packed)] == list(sizes)
    for each in packed:
        compared = compare_outputs(lite.content, each.content)
        assert [(c.kernels, c.equal) for c in compared] == [(name, True) for name in KERNEL_SETS]
        assert each.inputs == lite.inputs
        assert each.outputs == lite.outputs
        assert each.operators == lite.operators
        assert each.metadata == lite.metadata


@pytest.mark.parametrize("name", SHIPPED)
def test_the_students_of_the_app_lose_a_fifth_to_a_third(name):
    check_sizes(MODELS / name, SHIPPED[name])


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_models_lose_their_zero_points_ranges_and_names(shared_data, name):
    check_sizes(shared_data / "reference_models" / name, REFERENCES[name])


def test_all_that_the_schema_reads_is_the_same(mnist):
    before, after = unpack(mnist.content), unpack(kdtflite.pack(mnist, "all").content)
    assert after == before
    for graph in before["subgraphs"]:
        outer = {*graph["inputs"], *graph["outputs"]}
        for index, tensor in enumerate(graph["tensors"]):
            tensor["name"] = tensor["name"] if index in outer else None
    assert unpack(kdtflite.pack(mnist, "none").content) == before


def test_ranges_that_only_converters_read_are_left_out(mnist):
    def add_ranges(model):
        for tensor in model.subgraphs[0].tensors:
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                tensor.quantization.min, tensor.quantization.max = [-1.0], [1.0]

    content = edit(mnist.content, add_ranges)
    assert LiteModel(content).size_account().ranges > 0
    packed = kdtflite.pack(content, "all")
    assert packed.size_account().ranges == 0
    # The archive of labels stood behind the model, where this edit leaves nothing.
    model = kdtflite.pack(mnist, "all").content
    assert packed.content == model[: len(packed.content)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "model/relu/Relu;model/norm/FusedBatchNormV3;model/quant_conv/Conv2D1",
            "relu;norm;quant_conv",
        ),
        ("model/block/conv/Conv2D;model/block/conv/BiasAdd", "block/conv"),
        ("model/dense/BiasAdd/ReadVariableOp/resource", "dense"),
        ("model/pool/Mean/reduction_indices", "pool"),
        ("model/depthwise/depthwise", "depthwise"),
        ("tfl.pseudo_qconst3;StatefulPartitionedCall:0", ""),
        ("relu;block/conv", "relu;block/conv"),
    ],
)
def test_names_are_cut_to_the_layers_in_them(mnist, name, expected):
    def rename(model):
        model.subgraphs[0].tensors[4].name = name

    content = edit(mnist.content, rename)
    assert LiteModel(kdtflite.pack(content, "layers").content).tensors[4].name == expected


def test_names_of_inputs_outputs_and_signatures_stay(mnist):
    packed = LiteModel(kdtflite.pack(mnist, "none").content)
    named = {tensor.index for tensor in packed.tensors if tensor.name}
    assert named == {spec.index for spec in (*mnist.inputs, *mnist.outputs)}
    assert packed.inputs == mnist.inputs
    assert packed.inputs[0].shape_signature == (-1, 28, 28, 1)  # the dynamic batch
    (signature,) = packed.interpreter().get_signature_list().items()
    assert signature == ("serving_default", {"inputs": ["image"], "outputs": ["logits"]})
    batch = np.random.default_rng(0).random((7, 28, 28, 1), np.float32)
    np.testing.assert_array_equal(packed.predict(batch), mnist.predict(batch))


def test_the_returned_model_remembers_all_names_and_its_file_does_not(mnist, tmp_path):
    packed = kdtflite.pack(mnist, "none")
    assert [t.name for t in packed.tensors] == [t.name for t in mnist.tensors]
    saved = LiteModel.load(packed.save(tmp_path / "packed.tflite"))
    assert not saved.tensors[4].name
    assert saved == packed  # the same file


def test_labels_stay_in_their_archive(mnist):
    packed = kdtflite.pack(mnist, "none")
    assert packed.metadata == mnist.metadata
    assert packed.metadata.labels == tuple("0123456789")
    before, after = (zipfile.ZipFile(io.BytesIO(each.content)) for each in (mnist, packed))
    assert after.testzip() is None
    assert {i.filename: after.read(i) for i in after.infolist()} == {
        i.filename: before.read(i) for i in before.infolist()
    }


def test_packing_twice_changes_nothing(mnist):
    for names in packing.NAMES:
        packed = kdtflite.pack(mnist, names)
        assert kdtflite.pack(packed.content, names).content == packed.content


def test_weights_stay_at_multiples_of_16_bytes(mnist):
    content = kdtflite.pack(mnist, "none").content
    model = schema.Model.GetRootAs(content, 0)
    starts = []
    for i in range(model.BuffersLength()):
        table = model.Buffers(i)._tab
        if table.Offset(4):
            starts.append(table.Vector(table.Offset(4)))
    assert len(starts) > 20
    assert all(start % 16 == 0 for start in starts)


def test_another_output_is_refused_and_the_kernels_are_named(mnist):
    packed = bytearray(kdtflite.pack(mnist, "none").content)
    weights = mnist.tensors[30]  # those of the Dense layer
    table = schema.Model.GetRootAs(packed, 0)
    buffer = table.Buffers(table.Subgraphs(0).Tensors(weights.index).Buffer())._tab
    start = buffer.Vector(buffer.Offset(4))
    packed[start : start + 640] = bytes(640)
    with pytest.raises(ModelFileError, match="not compute the same with the XNNPACK kernels"):
        require_equal_outputs(mnist.content, bytes(packed))


def test_a_file_of_fields_that_the_schema_does_not_know_is_refused(mnist):
    tree = TreeReader(mnist.content, schema).read("Model")
    newer = write_tree(tree.replace(30, Vector(4, bytes(4), 4)), b"TFL3")
    with pytest.raises(ModelFileError, match="cannot be packed: a table Model has unknown fields"):
        kdtflite.pack(newer)


def test_a_damaged_archive_is_refused_rather_than_lost(mnist):
    broken = mnist.content[:-10]
    with pytest.raises(ModelFileError, match="associated files behind its model cannot be read"):
        kdtflite.pack(broken)


def test_an_unknown_choice_of_names_is_refused(mnist):
    with pytest.raises(ConfigurationError, match=r"all, layers, none\. Received: short"):
        kdtflite.pack(mnist, "short")


class Recorder:
    """Stands in for a builder, and records what the generated schema asks of it."""

    def __init__(self):
        self.kind = None

    def __getattr__(self, name):
        def record(slot, *_):
            self.kind = (slot, name)

        return record


def list_slots():
    """Yields each table's fields in the generated schema: its name, the slot, and the kind."""
    for name in dir(schema):
        head, _, field = name.partition("Add")
        if field and hasattr(schema, f"{head}Start") and hasattr(schema, head):
            recorder = Recorder()
            getattr(schema, name)(recorder, 0)
            slot, kind = recorder.kind
            yield head, slot, kind.removeprefix("Prepend").removesuffix("Slot")


def test_the_layout_lists_every_field_that_refers_to_another_place():
    widths = {"Bool": 1, "Int8": 1, "Uint8": 1, "Int16": 2, "Uint16": 2, "Int32": 4, "Uint32": 4}
    widths |= {"Float32": 4, "Int64": 8, "Uint64": 8, "Float64": 8}
    checked = 0
    for table, slot, kind in list_slots():
        listed = LAYOUT.get(table, {}).get(slot)
        if table.startswith("External") or (table, slot) in {("Model", 8), ("Model", 9)}:
            continue  # files with weights elsewhere are refused
        if kind == "UOffsetTRelative":
            assert isinstance(listed, str), (table, slot)
            checked += 1
        elif listed is not None:
            assert listed == widths[kind], (table, slot, kind)
    assert checked > 80


TEXTS = st.none() | st.text(max_size=9)
QUANTIZATIONS = st.none() | st.builds(
    lambda scales, zeros, axis: schema.QuantizationParametersT(
        scale=scales, zeroPoint=zeros, quantizedDimension=axis
    ),
    st.lists(st.sampled_from([0.5, 0.25]), max_size=4),
    st.lists(st.sampled_from([0, -(2**40)]), max_size=4),
    st.integers(-3, 3),
)
TENSORS = st.builds(
    lambda name, shape, kind, buffer, variable, quantization: schema.TensorT(
        name=name,
        shape=shape,
        type=kind,
        buffer=buffer,
        isVariable=variable,
        quantization=quantization,
    ),
    TEXTS,
    st.lists(st.integers(0, 2), max_size=4),
    st.integers(0, 9),
    st.integers(0, 3),
    st.booleans(),
    QUANTIZATIONS,
)
OPERATORS = st.builds(
    lambda inputs, stride: schema.OperatorT(
        inputs=inputs,
        builtinOptionsType=schema.BuiltinOptions.Conv2DOptions,
        builtinOptions=schema.Conv2DOptionsT(strideW=stride, padding=1),
    ),
    st.lists(st.integers(-1, 9), max_size=4),
    st.integers(1, 3),
)
BUFFERS = st.builds(
    lambda data: schema.BufferT(data=data),
    st.none() | st.lists(st.integers(0, 255), max_size=40),
)
FILES = st.builds(
    lambda tensors, operators, buffers, description: schema.ModelT(
        version=3,
        subgraphs=[schema.SubGraphT(tensors=tensors, operators=operators)],
        buffers=buffers,
        description=description,
    ),
    st.lists(TENSORS, max_size=6),
    st.lists(OPERATORS, max_size=3),
    st.lists(BUFFERS, max_size=5),
    TEXTS,
)


@given(FILES)
def test_any_flatbuffer_is_read_as_before_from_fewer_bytes(model):
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    content = bytes(builder.Output())
    tree = TreeReader(content, schema).read("Model")
    packed = write_tree(tree, b"TFL3")
    verify_flatbuffer(packed, schema, "Model")
    assert unpack(packed) == unpack(content)
    assert TreeReader(packed, schema).read("Model") == tree
    assert write_tree(tree, b"TFL3") == packed
    assert len(packed) % 16 == 0


def test_equal_parts_stand_once():
    zeros = Vector(8, bytes(8 * 100), 8)
    tables = [
        Table("QuantizationParameters", ((3, zeros), (6, bytes([i, 0, 0, 0])))) for i in (0, 1)
    ]
    tensors = [Table("Tensor", ((4, table),)) for table in (*tables, *tables)]
    model = Table("Model", ((2, Tables((Table("SubGraph", ((0, Tables(tuple(tensors))),)),))),))
    # 804 bytes of zeros once, and less than 200 of all that refers to them.
    assert 804 < len(write_tree(model, b"TFL3")) < 804 + 200
