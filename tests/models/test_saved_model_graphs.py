"""The graph of a SavedModel is read before it is loaded: nothing of a refused one runs."""

import numpy as np
import pytest
import tensorflow as tf
from crafted_files import copy_folder, save, small_model
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import kdtflite
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.distillation.teachers.saved_model import SavedModelTeacher
from kdtflite.errors import ModelFileError
from kdtflite.models import load_model
from kdtflite.models.trust.saved_models import check_saved_model

W = np.ones((4, 3), np.float32)


def plain(folder, spy=lambda: None, **attributes):
    module = tf.Module()
    module.w = tf.Variable(W)
    for name, value in attributes.items():
        setattr(module, name, value)

    @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
    def call(x):
        spy()
        return {"scores": x @ module.w}

    module.call = call
    tf.saved_model.save(module, str(folder), signatures=call)
    return folder


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def honest_keras(tmp_path_factory):
    return save(small_model(2), tmp_path_factory.mktemp("keras") / "model")


def alter(folder, target, change):
    """Copies a SavedModel and calls `change` with its meta graph."""
    copy_folder(folder, target)
    saved = SavedModel.FromString((target / "saved_model.pb").read_bytes())
    change(saved.meta_graphs[0])
    (target / "saved_model.pb").write_bytes(saved.SerializeToString())
    return target


def find_function(meta, part):
    return next(f for f in meta.graph_def.library.function if part in f.signature.name)


def find_node(function, operator):
    return next(node for node in function.node_def if node.op == operator)


REACHING_OUT = {
    "WriteFile": lambda path: tf.io.write_file(str(path), "x"),
    "ReadFile": lambda path: tf.io.read_file(str(path)),
    "MatchingFiles": lambda path: tf.io.matching_files(str(path)),
    "PrintV2": lambda path: tf.print("x", output_stream=f"file://{path}"),
    "EagerPyFunc": lambda path: tf.py_function(lambda: open(path, "w").close(), [], []),
    "PyFunc": lambda path: tf.numpy_function(lambda: np.zeros(1), [], [tf.float64]),
    "SaveV2": lambda path: tf.raw_ops.SaveV2(
        prefix=str(path), tensor_names=["w"], shape_and_slices=[""], tensors=[tf.constant(W)]
    ),
    "RestoreV2": lambda path: tf.raw_ops.RestoreV2(
        prefix=str(path), tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32]
    ),
    "ImmutableConst": lambda path: tf.raw_ops.ImmutableConst(
        dtype=tf.uint8, shape=[1], memory_region_name=str(path)
    ),
    "TFRecordDataset": lambda path: tf.raw_ops.TFRecordDataset(
        filenames=[str(path)], compression_type="", buffer_size=0
    ),
    "Abort": lambda path: tf.raw_ops.Abort(error_msg="x"),
}


@pytest.mark.parametrize("operator", sorted(REACHING_OUT))
def test_an_operator_that_reaches_out_is_refused_wherever_the_folder_is_given(tmp_path, operator):
    effect = tmp_path / "effect"
    folder = plain(tmp_path / "model", lambda: REACHING_OUT[operator](effect))
    match = rf"carries code: it uses {operator} \(node .* of function '.*unsafe=True"
    for load in (
        lambda: SavedModelTeacher(folder, outputs="logits"),
        lambda: kdtflite.convert(folder, target="float32", progress=False),
        lambda: as_teacher(folder, outputs="logits"),
    ):
        with pytest.raises(ModelFileError, match=match):
            load()
    assert not effect.exists()
    check_saved_model(folder, unsafe=True)


def test_an_initializer_that_writes_a_file_does_not_run(tmp_path):
    from tensorflow.python.trackable.resource import CapturableResource

    effect = tmp_path / "effect"

    class Writing(CapturableResource):
        def _create_resource(self):
            return tf.raw_ops.AnonymousMutableHashTable(key_dtype=tf.int64, value_dtype=tf.int64)

        def _initialize(self):
            tf.io.write_file(str(effect), "x")

    folder = plain(tmp_path / "model", resource=Writing())
    effect.unlink(missing_ok=True)
    with pytest.raises(ModelFileError, match=r"it uses WriteFile"):
        SavedModelTeacher(folder, outputs="logits")
    assert not effect.exists()


def test_a_table_that_is_filled_from_a_file_is_refused(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            *(str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
            *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
        ),
        -1,
    )
    with pytest.raises(ModelFileError, match=r"it uses InitializeTableFromTextFileV2"):
        SavedModelTeacher(plain(tmp_path / "model", table=table), outputs="logits")


def test_a_keras_model_with_another_graph_is_refused(tmp_path, honest_keras):
    def change(meta):
        for function in meta.graph_def.library.function:
            for name, value in (("evil_path", str(tmp_path / "effect")), ("evil_text", "x")):
                node = function.node_def.add(name=name, op="Const")
                node.attr["dtype"].type = tf.string.as_datatype_enum
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
            function.node_def.add(
                name="evil", op="WriteFile", input=["evil_path:output:0", "evil_text:output:0"]
            )

    folder = alter(honest_keras, tmp_path / "model", change)
    with pytest.raises(ModelFileError, match=r"it uses WriteFile \(node 'evil' of function"):
        load_model(folder)
    assert not (tmp_path / "effect").exists()


def test_an_honest_model_saves_and_restores_in_its_own_functions_only(honest, honest_keras):
    for folder in (honest, honest_keras):
        operators = {
            node.op
            for meta in SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
            for function in meta.graph_def.library.function
            for node in function.node_def
        }
        assert {"SaveV2", "RestoreV2"} <= operators
        assert check_saved_model(folder) >= W.nbytes
    assert SavedModelTeacher(honest, outputs="logits").output_shape == (None, 3)


def test_a_saver_with_a_file_name_of_its_own_is_refused(tmp_path, honest):
    def change(meta):
        function = find_function(meta, "traced_restore")
        node = function.node_def.add(name="evil", op="Const")
        node.attr["dtype"].type = tf.string.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/etc/passwd"))
        find_node(function, "RestoreV2").input[0] = "evil:output:0"

    folder = alter(honest, tmp_path / "model", change)
    with pytest.raises(ModelFileError, match=r"it uses RestoreV2 .*traced_restore"):
        check_saved_model(folder)


@pytest.mark.parametrize("saver", ["traced_save", "traced_restore"])
def test_a_saver_that_the_model_calls_is_refused(tmp_path, honest, saver):
    def change(meta):
        wrapper = find_function(meta, "signature_wrapper")
        name = find_function(meta, saver).signature.name
        node = wrapper.node_def.add(name="evil", op="StatefulPartitionedCall")
        node.attr["f"].func.name = name

    folder = alter(honest, tmp_path / "model", change)
    with pytest.raises(ModelFileError, match=rf"it uses \w+ .*{saver}"):
        check_saved_model(folder)


def test_an_unknown_operator_is_refused_by_name(tmp_path, honest):
    def change(meta):
        meta.graph_def.node.add(name="evil", op="My\x1b[31mOperator")

    with pytest.raises(
        ModelFileError, match=r"it uses My\\x1b\[31mOperator \(node 'evil' of its m"
    ):
        check_saved_model(alter(honest, tmp_path / "model", change))


@pytest.mark.parametrize("name", ["variables", "variables/variables.index", "assets/words.txt"])
def test_files_that_are_links_to_another_place_are_refused(tmp_path, honest, name):
    folder, outside = copy_folder(honest, tmp_path / "model"), tmp_path / "outside"
    path = folder / name
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("secret")
        path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(ModelFileError, match=r"is a link to .*outside, outside of the model's fol"):
        SavedModelTeacher(folder, outputs="logits")
    if "variables" in name:
        assert SavedModelTeacher(folder, outputs="logits", unsafe=True).output_shape == (None, 3)


def test_a_link_inside_of_the_folder_is_allowed(tmp_path, honest):
    folder = copy_folder(honest, tmp_path / "model")
    (folder / "variables").rename(folder / "weights")
    (folder / "variables").symlink_to(folder / "weights")
    assert check_saved_model(folder) >= W.nbytes


def test_an_asset_outside_of_the_folder_is_refused(tmp_path, honest):
    def change(meta):
        meta.asset_file_def.add(filename="../../secret.txt")

    with pytest.raises(ModelFileError, match=r"names the file '\.\./\.\./secret\.txt'"):
        check_saved_model(alter(honest, tmp_path / "model", change))


def test_a_constant_that_declares_far_more_than_it_holds_is_refused(tmp_path, honest):
    def change(meta):
        node = find_function(meta, "signature_wrapper").node_def.add(name="evil", op="Const")
        node.attr["dtype"].type = tf.float32.as_datatype_enum
        tensor = node.attr["value"].tensor
        tensor.dtype = tf.float32.as_datatype_enum
        tensor.float_val.append(1.0)
        for size in (1 << 20, 1 << 15):
            tensor.tensor_shape.dim.add(size=size)

    with pytest.raises(ModelFileError, match=r"its constants would take 128 GiB of memory"):
        check_saved_model(alter(honest, tmp_path / "model", change))
