"""Every form of a model becomes a tf_keras model; the refusal of others says what to pass."""

import json
import subprocess
import sys
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

import kdtflite
from kdtflite.errors import (
    ConfigurationError,
    KdtfliteError,
    ModelFileError,
    UnsupportedModelError,
)
from kdtflite.lite.model import LiteModel
from kdtflite.models import as_graph, as_tf_keras

X = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")


def _net(package=keras):
    return package.Sequential([package.Input((5,)), package.layers.Dense(2, name="out")])


def test_a_tf_keras_model_is_returned_itself():
    model = _net()
    assert as_tf_keras(model) is model


def test_a_keras_3_model_is_rebuilt():
    source = _net(keras3)
    np.testing.assert_allclose(as_tf_keras(source)(X), source(X), rtol=1e-6)


@pytest.mark.parametrize("ending", [".keras", ".h5", ""])
def test_a_path_is_loaded(tmp_path, ending):
    model = _net()
    path = tmp_path / f"model{ending}"
    model.save(path)
    for given in (path, str(path)):
        np.testing.assert_array_equal(as_tf_keras(given)(X), model(X))


def test_a_distiller_stands_for_its_student():
    student = _net()
    distiller = kdtflite.Distiller(student, _net(), losses=[])
    assert as_tf_keras(distiller) is student
    assert as_graph(distiller) is student


def test_a_trained_model_of_another_keras_is_rebuilt_too():
    class Trainer:
        trained_model = _net(keras3)

    assert isinstance(as_tf_keras(Trainer()), keras.Sequential)


def test_an_attribute_of_the_users_own_model_is_left_alone():
    model = _net()
    model.trained_model = _net()
    assert as_tf_keras(model) is model


@pytest.mark.parametrize("function", [as_tf_keras, as_graph])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "Received: None"),
        (keras.Model, "Received: the class Model, not an instance"),
        (3, "Received: int"),
        (b"TFL3", "Received: bytes"),
        (keras.layers.Dense(2), "Received: tf_keras.*Dense"),
        ("student.tflite", r"Received: the .tflite file 'student.tflite'\. .*made from"),
        (Path("student.tflite"), r"Received: the .tflite file 'student.tflite'"),
    ],
)
def test_anything_else_is_refused_by_what_it_is(function, value, message):
    with pytest.raises(UnsupportedModelError, match=f"Expected a Keras model.*{message}"):
        function(value)


def test_a_lite_model_is_refused():
    lite = kdtflite.convert(_net(), target="float32", progress=False)
    assert isinstance(lite, LiteModel)
    with pytest.raises(UnsupportedModelError, match=r"Received: a LiteModel.*made from"):
        as_tf_keras(lite)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"no file or folder .*student.keras"):
        as_tf_keras(tmp_path / "student.keras")


@pytest.mark.parametrize("value", [None, 3, b"TFL3", _net])
def test_what_is_no_path_cannot_be_loaded(value):
    with pytest.raises(ConfigurationError, match=r"Expected path= to be a string or a path.*Rec"):
        kdtflite.load_model(value)


def test_an_unbuilt_model_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"'raw' is not built.*model.build"):
        as_tf_keras(keras.Sequential([keras.layers.Dense(2)], name="raw"))


@pytest.mark.parametrize("kind", ["distiller", "keras3", "path"])
def test_quantize_aware_and_convert_take_every_kind(tmp_path, kind):
    model = _net()
    if kind == "distiller":
        model = kdtflite.Distiller(model, _net(), losses=[])
    elif kind == "keras3":
        model = _net(keras3)
    else:
        model.save(tmp_path / "model.keras")
        model = tmp_path / "model.keras"
    aware = kdtflite.quantize_aware(model, X)
    for given in (model, aware):
        lite = kdtflite.convert(given, X, progress=False)
        assert lite.predict(X).shape == (3, 2)


@pytest.mark.parametrize(
    "function", [kdtflite.quantize_aware, kdtflite.quantize_post_training, kdtflite.convert]
)
@pytest.mark.parametrize("value", [None, 3, "student.tflite"])
def test_nothing_else_ends_in_a_raw_error(function, value):
    with pytest.raises(KdtfliteError, match="Expected"):
        function(value, X)


def test_importing_the_package_imports_no_tensorflow():
    code = (
        "import json, sys, kdtflite.models as m; m.as_tf_keras; m.as_graph; dir(m);"
        "print(json.dumps([n in sys.modules for n in ('tensorflow', 'tf_keras', 'keras')]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == [False, False, False]


def test_functions_are_not_hidden_by_modules_of_their_name():
    import kdtflite.models.as_graph
    import kdtflite.models.as_tf_keras

    assert callable(kdtflite.models.as_graph)
    assert callable(kdtflite.models.as_tf_keras)
