"""A teacher that somebody else trained: a .tflite or ONNX file teaches a recipe's student."""

import numpy as np
import onnx
import pytest
import tf_keras as keras
import yaml
from onnx import TensorProto, helper, numpy_helper
from pipeline_data import dataset
from pipeline_data import teacher as corners_teacher

import kdtflite
from kdtflite.errors import DataError, ModelFileError, ShapeMismatchError
from kdtflite.pipeline.recipe import load_recipe
from kdtflite.pipeline.run import run
from kdtflite.pipeline.stages import STAGES, Run

DATA = dataset()


@pytest.fixture(scope="module")
def lite_teacher(tmp_path_factory):
    """An int8 file of the teacher that is right, ending in a softmax."""
    model = corners_teacher()
    ended = keras.Model(model.input, keras.layers.Softmax()(model.output))
    path = tmp_path_factory.mktemp("teacher") / "corners.tflite"
    kdtflite.convert(ended, DATA.train.x, progress=False).save(path)
    return path


def recipe(path, data="digits"):
    return {
        "name": "foreign",
        "data": {"name": str(data)},
        "teacher": {"load": str(path)},
        "student": {"architecture": "convnet", "widths": [4, 4]},
        "distillation": {
            "epochs": 8, "batch_size": 16, "learning_rate": 0.05, "temperature": 2,
            "cached_views": 1,
        },
        "conversion": {"representative_samples": 32},
        "evaluation": {"pictures": 4},
    }  # fmt: skip


def test_a_quantized_file_teaches_a_whole_run_and_is_measured_as_it_is(tmp_path, lite_teacher):
    data = tmp_path / "corners.npz"
    arrays = {f"x_{part}": split.x for part, split in DATA.splits.items()}
    arrays |= {f"y_{part}": split.y for part, split in DATA.splits.items()}
    np.savez(data, **arrays)
    result = run(recipe(lite_teacher, data), output=tmp_path / "run")
    first = result.report["models"][0]
    assert (first["key"], first["label"]) == ("teacher", "Teacher (int8)")
    assert first["bytes"] == lite_teacher.stat().st_size
    assert first["sha256"] == kdtflite.files.sha256(lite_teacher)
    expected = kdtflite.evaluate(lite_teacher, DATA.test, progress=False).accuracy
    assert first["accuracy"] == expected > 0.9
    assert (tmp_path / "run" / "report.html").is_file()
    stored = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert stored["teacher"]["load"] == str(lite_teacher)


def make_run(path, folder):
    made = Run(load_recipe(recipe(path)), folder, {})
    made.__dict__["dataset"] = DATA
    (folder / "teacher").mkdir()
    return made


def write_onnx(path, kernel):
    """Writes a teacher of one matrix from the 36 pixels to the classes."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "kernel"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([-1, 36], np.int64), "flat"),
        numpy_helper.from_array(kernel.astype(np.float32), "kernel"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6, 6, 1])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(nodes, "teacher", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def test_an_onnx_file_teaches_and_is_noticed_if_it_changes(tmp_path, capfd):
    means = np.zeros((6, 6, 3))
    for place, (row, column) in enumerate([(0, 0), (0, 3), (3, 0)]):
        means[row : row + 3, column : column + 3, place] = 4
    path = tmp_path / "corners.onnx"
    write_onnx(path, means.reshape(36, 3))
    made = make_run(path, tmp_path)
    (work,) = (stage.work for stage in STAGES if stage.name == "teacher")
    made.results["teacher"] = work(made)
    right = (DATA.validation.x.reshape(-1, 36) @ means.reshape(36, 3)).argmax(1)
    accuracy = (right == DATA.validation.y).mean()
    assert accuracy > 0.9
    assert f"accuracy {accuracy:.4f} on validation" in " ".join(capfd.readouterr().err.split())
    np.testing.assert_allclose(
        made.read_teacher()(DATA.test.x[:5]), DATA.test.x[:5].reshape(5, 36) @ means.reshape(36, 3),
        rtol=1e-5,
    )  # fmt: skip
    write_onnx(path, 2 * means.reshape(36, 3))
    with pytest.raises(DataError, match="changed since the run began"):
        made.read_teacher()


@pytest.mark.parametrize("name", ["nowhere.tflite", "nowhere.onnx", "notes.txt"])
def test_a_file_that_is_not_there_is_refused_at_once(tmp_path, name):
    values = recipe(tmp_path / name, data=tmp_path / "nothing.npz")
    with pytest.raises(ModelFileError, match="no file or folder"):
        run(values, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_with_other_classes_is_refused_before_a_training(tmp_path, lite_teacher):
    values = recipe(lite_teacher)
    with pytest.raises(ShapeMismatchError, match="distillation cannot be used"):
        run(values, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
