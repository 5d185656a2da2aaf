"""What `as_teacher` accepts as a teacher."""

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.teachers.callable import CallableTeacher
from kdtflite.distillation.teachers.ensemble import EnsembleTeacher
from kdtflite.distillation.teachers.lite import LiteTeacher
from kdtflite.distillation.teachers.model import ModelTeacher
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.errors import ConfigurationError, ModelFileError, UnsupportedModelError
from kdtflite.lite.model import LiteModel

X = np.random.default_rng(0).normal(0, 1, (3, 4)).astype(np.float32)


def test_models_of_both_keras_are_models_though_they_are_callable(models):
    assert isinstance(as_teacher(models.teacher()), ModelTeacher)
    model = keras3.Sequential([keras3.Input((4,)), keras3.layers.Dense(3)])
    assert isinstance(as_teacher(model), ModelTeacher)
    with pytest.raises(UnsupportedModelError, match=r"not built"):
        as_teacher(keras.Sequential([keras.layers.Dense(3)]))


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_keras_files_are_loaded(models, tmp_path, ending):
    model = models.teacher()
    model.save(tmp_path / f"teacher{ending}")
    teacher = as_teacher(str(tmp_path / f"teacher{ending}"))
    assert isinstance(teacher, ModelTeacher)
    np.testing.assert_allclose(teacher(X), model(X), rtol=1e-6)


def test_tflite_files_are_known_by_their_content(models, tmp_path):
    lite = LiteModel(tf.lite.TFLiteConverter.from_keras_model(models.teacher()).convert())
    assert isinstance(as_teacher(lite), LiteTeacher)
    for name in ("teacher.tflite", "teacher.bin"):
        assert isinstance(as_teacher(lite.save(tmp_path / name)), LiteTeacher)


def test_onnx_files_are_known_by_their_ending(tmp_path):
    (tmp_path / "teacher.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFileError, match=r"onnxruntime does not take"):
        as_teacher(tmp_path / "teacher.onnx")


def test_a_list_is_the_mean_of_what_it_holds(models):
    teacher = as_teacher([models.teacher(), lambda x: x[:, :3]], preprocessing=lambda x: -x)
    assert isinstance(teacher, EnsembleTeacher)
    assert teacher.how == "mean"
    assert [type(one) for one in teacher.teachers] == [ModelTeacher, CallableTeacher]
    np.testing.assert_allclose(teacher.teachers[1].preprocessing(X), -X)
    with pytest.raises(ConfigurationError, match=r"one or more teachers"):
        as_teacher([])
    assert as_teacher([models.teacher()], task="multilabel").task == "multilabel"


def test_a_function_is_taken_to_give_logits_and_that_is_said(capsys, models):
    teacher = as_teacher(lambda x: x)
    teacher.check_inputs(models.student())
    assert teacher.outputs == "logits"
    assert "taken as logits" in capsys.readouterr().err
    assert as_teacher(lambda x: x, task="regression").outputs == "values"
    assert as_teacher(lambda x: x, outputs="sigmoid").outputs == "sigmoid"
    assert "logits" not in capsys.readouterr().err


def test_a_teacher_is_itself_and_has_its_own_options():
    teacher = CallableTeacher(lambda x: x)
    assert as_teacher(teacher) is teacher
    with pytest.raises(ConfigurationError, match=r"its own preprocessing and outputs"):
        as_teacher(teacher, outputs="logits")


class Module:
    """What a PyTorch module looks like from outside."""

    __module__ = "torch.nn.modules.module"

    def __call__(self, x):
        return x


def test_what_cannot_teach_is_refused_with_what_can(tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"PyTorch module \(Net\)(.|\n)*with torch\.no_grad"
    ):
        as_teacher(type("Net", (Module,), {"__module__": "mine"})())
    for nothing, received in ((3, "int"), (None, "NoneType"), (dict, "the class dict")):
        with pytest.raises(
            ConfigurationError, match=f"Expected a Keras model.*Received: {received}"
        ):
            as_teacher(nothing)
    with pytest.raises(ModelFileError, match=r"There is no teacher at .*Expected a Keras model"):
        as_teacher(tmp_path / "none.keras")
    (tmp_path / "weights.pt").write_bytes(b"PK")
    with pytest.raises(ModelFileError, match=r"weights\.pt is not a file that can teach.*\.onnx"):
        as_teacher(tmp_path / "weights.pt")
    with pytest.raises(ModelFileError, match=r"Expected a SavedModel folder"):
        as_teacher(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "plan.json").touch()
    with pytest.raises(ModelFileError, match=r"is a teacher cache.*TeacherCache\.open"):
        as_teacher(tmp_path / "cache")
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "bare"))
    with pytest.raises(ConfigurationError, match=r"Pass the path of its folder"):
        as_teacher(tf.saved_model.load(str(tmp_path / "bare")))
