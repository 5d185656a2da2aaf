"""Files in: every kind loads to the same outputs; every bad one gets one clear sentence."""

import json
import subprocess
import sys
import zipfile

import h5py
import keras as keras3
import numpy as np
import pytest
import tf_keras as keras

from kdtflite.errors import ModelFileError, UnsupportedModelError
from kdtflite.models import from_keras3, keras_generation, load_model
from kdtflite.runtime import import_tfmot

X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


def _keras2() -> keras.Model:
    x = keras.Input((4,))
    y = keras.layers.Dense(3, activation="swish", name="first")(x)
    y = y + keras.layers.Dense(3, kernel_regularizer="l2")(x)  # a TFOpLambda in the file
    model = keras.Model(x, keras.layers.BatchNormalization()(y))
    model.compile("adam", "mse")
    return model


def _keras3() -> keras3.Model:
    model = keras3.Sequential(
        [
            keras3.Input((4,)),
            keras3.layers.Dense(3, activation="silu"),
            keras3.layers.LeakyReLU(0.2),
        ]
    )
    model.compile("adam", "mse")
    return model


@pytest.mark.parametrize("ending", [".keras", ".h5", ".hdf5", ""])
def test_a_keras2_file_loads_to_the_same_outputs(tmp_path, ending):
    model, path = _keras2(), tmp_path / f"model{ending}"
    if ending == "":
        model.save(path, save_format="tf")
    elif ending == ".hdf5":
        model.save(path, save_format="h5")
    else:
        model.save(path)
    loaded = load_model(str(path))
    np.testing.assert_allclose(loaded(X), model(X), rtol=1e-6, atol=1e-7)
    assert keras_generation(path) == 2
    assert isinstance(loaded, keras.Model)
    assert loaded.optimizer is None
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_keras3_file_loads_as_a_tf_keras_model(tmp_path, ending):
    model, path = _keras3(), tmp_path / f"model{ending}"
    model.save(path)
    loaded = load_model(path)
    assert keras_generation(path) == 3
    assert isinstance(loaded, keras.Sequential)
    np.testing.assert_allclose(loaded(X), np.array(model(X)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_borrowed_activations_load_in_a_fresh_process(tmp_path, ending):
    source = keras3.Sequential(
        [keras3.Input((4,)), keras3.layers.Dense(3, activation="hard_silu", name="first")]
    )
    path = tmp_path / f"model{ending}"
    from_keras3(source).save(path)
    code = (
        "import sys; from kdtflite.models import load_model;"
        "print(load_model(sys.argv[1]).layers[0].activation.__name__)"
    )
    run = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "hard_silu"


@pytest.mark.parametrize("ending", [".h5", ""])
def test_a_quantized_model_loads(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    float_model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)]
    )
    model = import_tfmot().quantization.keras.quantize_model(float_model)
    model.save(path, save_format="h5" if ending else "tf")
    np.testing.assert_array_equal(load_model(path)(X), model(X))


def test_a_pruned_model_loads(tmp_path):
    float_model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = import_tfmot().sparsity.keras.prune_low_magnitude(float_model)
    model.save(tmp_path / "model.h5")
    np.testing.assert_array_equal(load_model(tmp_path / "model.h5")(X), model(X))


def test_a_quantized_keras_file_is_refused_with_a_way_out(tmp_path):
    float_model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    import_tfmot().quantization.keras.quantize_model(float_model).save(tmp_path / "q.keras")
    with pytest.raises(ModelFileError, match=r"q\.keras holds a model wrapped by TFMOT.*\.h5"):
        load_model(tmp_path / "q.keras")


def _with_lambda(module, nested):
    layers = [module.Input((4,)), module.layers.Lambda(lambda t: t * 2.0, name="twice")]
    model = module.Sequential(layers, name="inner")
    return module.Sequential([module.Input((4,)), model]) if nested else model


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", [".keras", ".h5", ""])
def test_code_in_a_keras2_file_needs_unsafe(tmp_path, ending, nested):
    path = tmp_path / f"model{ending}"
    _with_lambda(keras, nested).save(path, **({} if ending else {"save_format": "tf"}))
    with pytest.raises(ModelFileError, match=r"carries code: layer 'twice'.*Lambda.*--unsafe"):
        load_model(path)
    np.testing.assert_allclose(load_model(path, unsafe=True)(X), X * 2)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_code_in_a_keras3_file_is_refused_and_never_carried_over(tmp_path, ending, nested):
    path = tmp_path / f"model{ending}"
    _with_lambda(keras3, nested).save(path)
    with pytest.raises(ModelFileError, match=r"carries code: layer 'twice'.*Lambda.*--unsafe"):
        load_model(path)
    with pytest.raises(UnsupportedModelError, match=r"layer 'twice' \(Lambda\)"):
        load_model(path, unsafe=True)


def _rewrite(path, change):
    """Rewrites the configuration inside a .keras or .h5 file."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("module", ["keras2", "keras3"])
@pytest.mark.parametrize(
    ("where", "function"),
    [("posix", "system"), ("builtins", "exec"), ("keras.utils", "get_file"), ("os", "get")],
)
def test_a_function_named_in_a_file_is_never_fetched(tmp_path, module, where, function):
    path = tmp_path / "model.keras"
    package = keras if module == "keras2" else keras3
    package.Sequential([package.Input((4,)), package.layers.Dense(3, name="evil")]).save(path)

    def change(config):
        layer = next(i for i in config["config"]["layers"] if i["config"]["name"] == "evil")
        layer["config"]["activation"] = {
            **{"module": where, "class_name": "function"},
            **{"config": function, "registered_name": function},
        }

    _rewrite(path, change)
    with pytest.raises(ModelFileError, match=rf"layer 'evil' .*the function '{function}'"):
        load_model(path, unsafe=True)


def test_a_file_operation_in_a_graph_counts_as_code(tmp_path):
    path = tmp_path / "model.h5"
    _keras2().save(path)

    def change(config):
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "TFOpLambda":
                layer["config"]["function"] = "io.write_file"

    _rewrite(path, change)
    with pytest.raises(ModelFileError, match=r"call of io\.write_file"):
        load_model(path)


class Foreign(keras.layers.Layer):
    def call(self, x):
        return x * 3


class Foreign3(keras3.layers.Layer):
    def call(self, x):
        return x * 3


@pytest.mark.parametrize("ending", [".keras", ".h5", ""])
def test_a_custom_layer_is_named_and_can_be_vouched_for(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    model = keras.Sequential([keras.Input((4,)), Foreign(name="mine")])
    model.save(path, **({} if ending else {"save_format": "tf"}))
    with pytest.raises(ModelFileError, match=r"custom code: layer 'mine'.*Foreign.*custom_objects"):
        load_model(path)
    loaded = load_model(path, custom_objects={"Foreign": Foreign})
    np.testing.assert_allclose(loaded(X), X * 3)


def test_a_custom_keras3_layer_is_named(tmp_path):
    path = tmp_path / "model.keras"
    keras3.Sequential([keras3.Input((4,)), Foreign3(name="mine")]).save(path)
    with pytest.raises(ModelFileError, match=r"layer 'mine'.*Foreign3.*custom_objects"):
        load_model(path)


def test_a_custom_loss_does_not_hinder_loading(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", loss=lambda y, p: keras.losses.mse(y, p))
    model.save(tmp_path / "model.keras")
    assert load_model(tmp_path / "model.keras").output_shape == (None, 2)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    model = _keras2()
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    return {ending: (folder / f"model{ending}").read_bytes() for ending in (".keras", ".h5")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.keras", None, r"There is no file or folder .*none\.keras"),
        ("empty.keras", b"", r"empty\.keras is empty"),
        ("empty.h5", b"", r"empty\.h5 is empty"),
        ("text.keras", b"hello there, no model", r"text\.keras is not a Keras file.*zip archive"),
        ("noise.h5", bytes(range(7, 207)), r"noise\.h5 is not an HDF5 file"),
        ("noise.keras", bytes(range(7, 207)), r"noise\.keras is not a Keras file"),
        ("model.pt", b"x", r"model\.pt has the ending '\.pt'.*\.keras, \.h5, \.hdf5.*SavedModel"),
        ("m.tflite", b"x", r"ending '\.tflite'.*evaluated, not trained"),
        ("bare", b"x", r"ending ''"),
    ],
)
def test_what_is_no_model_file_is_named_in_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for function in (load_model, keras_generation):
        with pytest.raises(ModelFileError, match=message) as raised:
            function(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_file_cut_short_is_called_so(tmp_path, sound, ending, share):
    path = tmp_path / f"cut{ending}"
    path.write_bytes(sound[ending][: int(len(sound[ending]) * share)])
    with pytest.raises(ModelFileError, match=rf"cut\{ending} is damaged or cut short"):
        load_model(path)


def test_a_flipped_byte_in_a_keras_file_is_noticed(tmp_path, sound):
    content = bytearray(sound[".keras"])
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.keras").write_bytes(bytes(content))
    with pytest.raises(ModelFileError, match=r"flipped\.keras is damaged at model\.weights\.h5"):
        load_model(tmp_path / "flipped.keras")


def test_exchanged_endings_are_noticed(tmp_path, sound):
    (tmp_path / "a.keras").write_bytes(sound[".h5"])
    (tmp_path / "b.h5").write_bytes(sound[".keras"])
    with pytest.raises(ModelFileError, match=r"a\.keras is an HDF5 file.*\.h5"):
        load_model(tmp_path / "a.keras")
    with pytest.raises(ModelFileError, match=r"b\.h5 is a zip archive.*\.keras"):
        load_model(tmp_path / "b.h5")


def test_a_zip_that_is_no_model_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.keras", "w") as archive:
        archive.writestr("photo.txt", "sun")
    with pytest.raises(
        ModelFileError, match=r"not a Keras model: it lacks config\.json, metadata\.json, "
    ):
        load_model(tmp_path / "photos.keras")


def test_broken_json_in_a_file_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "broken.keras", "w") as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, "{")
    with pytest.raises(ModelFileError, match=r"broken\.keras is damaged: .*not JSON"):
        load_model(tmp_path / "broken.keras")


def test_a_weights_file_is_told_from_a_model(tmp_path):
    _keras2().save_weights(tmp_path / "w.h5")
    with pytest.raises(ModelFileError, match=r"w\.h5 holds weights, but no model.*load_weights"):
        load_model(tmp_path / "w.h5")


def test_a_folder_that_is_no_saved_model_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"not a SavedModel: it lacks saved_model\.pb"):
        load_model(tmp_path)


def test_an_exported_keras3_model_can_only_be_converted(tmp_path):
    _keras3().export(tmp_path / "exported", verbose=False)
    with pytest.raises(
        ModelFileError, match=r"without Keras layers.*converted to \.tflite.*not tr"
    ):
        load_model(tmp_path / "exported")


def test_a_damaged_saved_model_is_named(tmp_path):
    path = tmp_path / "model"
    _keras2().save(path, save_format="tf")
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(ModelFileError, match=r"model could not be loaded by Keras 2"):
        load_model(path)
    (path / "keras_metadata.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ModelFileError, match=r"keras_metadata\.pb is damaged"):
        load_model(path)
