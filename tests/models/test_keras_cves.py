"""Each CVE of Keras since 2024 as a file with a harmless payload: it is refused, and nothing runs.

The numbers of 2026 are those of Keras 3; tf_keras had the same faults.
"""

import json
import tarfile
import zipfile

import h5py
import keras as keras3
import numpy as np
import pytest
import tf_keras as keras
from crafted_files import (
    GENERATIONS,
    change_config,
    change_weights,
    find_dataset,
    put_layer,
    save,
    set_activation,
    small_model,
)

from kdtflite.errors import ModelFileError
from kdtflite.models import load_model

FILES_2 = [".keras", ".h5", ""]
FILES = [(2, ".keras"), (2, ".h5"), (3, ".keras"), (3, ".h5")]


def refuse(path, effect, match):
    with pytest.raises(ModelFileError, match=match) as raised:
        load_model(path)
    assert not effect.exists()
    assert "\n" not in str(raised.value)


def call_with(*arguments, **named):
    """A node of a Keras 2 graph that calls its layer with constants."""
    first = arguments[0] if len(arguments) == 1 else list(arguments)
    return [[["_CONSTANT_VALUE", -1, first, named]]]


@pytest.mark.parametrize("ending", FILES_2)
@pytest.mark.parametrize("nested", [False, True])
def test_cve_2024_3660_and_2025_9905_a_lambda_runs_its_bytecode(tmp_path, ending, nested):
    effect, text = tmp_path / "effect", str(tmp_path / "effect")
    layer = keras.layers.Lambda(
        lambda t, name=text: (open(name, "w").close(), t)[1],
        name="evil",
    )
    model = keras.Sequential([keras.Input((4,)), layer])
    if nested:
        model = keras.Sequential([keras.Input((4,)), model])
    path = save(model, tmp_path / f"model{ending}")
    effect.unlink()
    refuse(path, effect, r"carries code: layer 'evil' is or holds a Lambda")


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_cve_2025_9905_a_lambda_of_keras_3(tmp_path, ending):
    effect, text = tmp_path / "effect", str(tmp_path / "effect")
    layer = keras3.layers.Lambda(
        lambda t, name=text: (open(name, "w").close(), t)[1],
        output_shape=(4,),
        name="evil",
    )
    path = save(keras3.Sequential([keras3.Input((4,)), layer]), tmp_path / f"model{ending}")
    effect.unlink(missing_ok=True)
    refuse(path, effect, r"carries code: layer 'evil' is or holds a Lambda")


@pytest.mark.parametrize("module", ["shutil", "tf_keras.src.utils.data_utils"])
@pytest.mark.parametrize("name", ["copyfile", "shutil.copyfile"])
def test_cve_2025_1550_a_layer_names_a_function_of_a_module(tmp_path, module, name):
    path, source, effect = tmp_path / "model.keras", tmp_path / "source", tmp_path / "effect"
    source.write_text("x")
    save(small_model(2), path)
    change_config(
        path,
        lambda config: put_layer(
            config,
            {
                "module": module,
                "class_name": name,
                "registered_name": name,
                "config": {"name": "evil"},
                "inbound_nodes": call_with(str(source), dst=str(effect)),
            },
        ),
    )
    refuse(path, effect, rf"layer 'evil' is or (uses|holds) the class '{module}\.{name}'")


@pytest.mark.parametrize("where", ["posix", "kdtflite.__main__", "keras.src.utils.file_utils"])
@pytest.mark.parametrize("registered", ["system", "kdtflite>hard_silu", None])
@pytest.mark.parametrize("generation", [2, 3])
def test_cve_2025_1550_an_activation_names_a_function(tmp_path, generation, where, registered):
    path = save(small_model(generation), tmp_path / "model.keras")
    function = {
        **{"module": where, "class_name": "function", "config": "system"},
        "registered_name": registered,
    }
    change_config(path, lambda config: set_activation(config, function))
    refuse(path, tmp_path / "effect", r"layer 'first' is or uses the function 'system'")


@pytest.mark.parametrize("generation", [2, 3])
def test_cve_2025_1550_a_module_is_not_even_imported(tmp_path, monkeypatch, generation):
    effect = tmp_path / "effect"
    (tmp_path / "imported.py").write_text(f"open({str(effect)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    path = save(small_model(generation), tmp_path / "model.keras")
    for named in (
        {"class_name": "Dense", "registered_name": "Dense"},
        {"class_name": "function", "config": "hard_silu", "registered_name": "kdtflite>hard_silu"},
        {"class_name": "__typespec__", "spec_name": "TensorSpec", "registered_name": None},
        {"class_name": "TensorShape", "registered_name": "TensorShape"},
    ):
        node = {"module": "imported", "config": {}, **named}
        change_config(path, lambda config, node=node: set_activation(config, node))
        refuse(path, effect, r"layer 'first' is or uses the (class|function|type) ")


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize(
    "function",
    [
        "keras.utils.get_file",
        "keras.utils.save_img",
        "keras.models.load_model",
        "io.write_file",
        "io.read_file",
        "io.gfile.copy",
        "compat.v1.io.write_file",
        "data.Dataset.list_files",
        "saved_model.load",
        "load_library",
        "raw_ops.WriteFile",
        "py_function",
        "print",
        "map_fn",
        "random.fixed_unigram_candidate_sampler",
        "math",
        "__operators__",
    ],
)
def test_cve_2025_8747_an_operation_of_a_graph_names_a_function(tmp_path, ending, function):
    path, source, effect = tmp_path / f"model{ending}", tmp_path / "source", tmp_path / "effect"
    source.write_text("x")
    save(small_model(2), path)
    changed = {"name": "evil", "function": function, "trainable": True, "dtype": "float32"}
    for kind in ("TFOpLambda", "SlicingOpLambda"):
        layer = {"class_name": kind, "config": changed, "inbound_nodes": []}
        if ending == ".keras":
            layer["module"], layer["registered_name"] = "keras.src.layers.core.tf_op_layer", kind
        layer["inbound_nodes"] = call_with(str(source), dst=str(effect))
        change_config(path, lambda config, layer=layer: put_layer(config, layer))
        refuse(path, effect, rf"layer 'evil' is or holds a call of {function}")


def test_cve_2025_8747_and_12060_get_file_fetches_and_unpacks_an_archive(tmp_path):
    effect, source = tmp_path / "effect", tmp_path / "source.tar"
    (tmp_path / "payload").write_text("x")
    with tarfile.open(source, "w") as archive:
        archive.add(tmp_path / "payload", arcname="../../effect")
    for generation in (2, 3):
        path = save(small_model(generation), tmp_path / f"model{generation}.keras")
        layer = {
            **{"module": "keras.utils", "class_name": "get_file", "registered_name": "get_file"},
            "config": {"name": "evil"},
            "inbound_nodes": call_with(
                "source", origin=source.as_uri(), extract=True, cache_dir=str(tmp_path / "a")
            ),
        }
        change_config(path, lambda config, layer=layer: put_layer(config, layer))
        refuse(path, effect, r"layer 'evil' is or holds the class 'keras\.utils\.get_file'")
        assert not (tmp_path / "a").exists()


def test_cve_2025_9906_a_file_switches_the_safe_mode_off(tmp_path):
    path = save(small_model(3), tmp_path / "model.keras")
    name = "enable_unsafe_deserialization"
    layer = {
        **{"module": "keras.config", "class_name": name, "registered_name": name},
        "config": {"name": "evil"},
    }
    change_config(path, lambda config: put_layer(config, layer))
    refuse(path, tmp_path / "effect", rf"layer 'evil' is or holds the class 'keras\.config\.{name}")


@pytest.mark.parametrize("kind", ["IntegerLookup", "StringLookup", "TextVectorization"])
@pytest.mark.parametrize(("generation", "ending"), FILES)
def test_cve_2025_12058_a_vocabulary_is_the_path_of_a_file(tmp_path, generation, ending, kind):
    secret = tmp_path / "secret.txt"
    secret.write_text("1\n2\n")
    path = save(small_model(generation), tmp_path / f"model{ending}")
    layer = {"class_name": kind, "config": {"name": "evil", "vocabulary": str(secret)}}
    if ending == ".keras":
        layer |= {"module": "keras.layers", "registered_name": None}
    change_config(path, lambda config: put_layer(config, layer))
    refuse(path, tmp_path / "effect", r"layer 'evil' is or holds the file '.*secret\.txt' as its v")


@pytest.mark.parametrize("kind", ["TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"])
def test_cve_2025_49655_and_2026_1462_layers_of_foreign_code(tmp_path, kind):
    path = save(small_model(3), tmp_path / "model.keras")
    layer = {"module": "keras.layers", "class_name": kind, "registered_name": None}
    layer["config"] = {"name": "evil", "filepath": str(tmp_path)}
    change_config(path, lambda config: put_layer(config, layer))
    refuse(path, tmp_path / "effect", rf"layer 'evil' is or holds a {kind}")


def _store_outside(file, name, secret):
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, "float32", external=[(str(secret), 0, 4 * np.prod(shape))])


def _link_outside(file, name, secret):
    with h5py.File(secret.with_suffix(".other.h5"), "w") as other:
        other["secret"] = np.ones(file[name].shape, np.float32)
    del file[name]
    file[name] = h5py.ExternalLink(str(secret.with_suffix(".other.h5")), "/secret")


def _link_softly(file, name, secret):
    file["elsewhere"] = file[name][()]
    del file[name]
    file[name] = h5py.SoftLink("/elsewhere")


def _map(file, name, secret):
    shape = file[name].shape
    with h5py.File(secret.with_suffix(".other.h5"), "w") as other:
        other["secret"] = np.ones(shape, np.float32)
    layout = h5py.VirtualLayout(shape=shape, dtype="float32")
    layout[...] = h5py.VirtualSource(str(secret.with_suffix(".other.h5")), "secret", shape=shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_store_outside, r"has its values in the file '.*secret'"),
        (_link_outside, r"is a link into the file '.*secret\.other\.h5'"),
        (_link_softly, r"is a link to '/elsewhere'"),
        (_map, r"is a virtual dataset"),
    ],
)
@pytest.mark.parametrize(("generation", "ending"), FILES)
def test_cve_2026_1669_weights_are_read_from_any_file(tmp_path, generation, ending, change, match):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x01" * 4096)
    path = save(small_model(generation), tmp_path / f"model{ending}")
    change_weights(path, lambda file: change(file, find_dataset(file), secret))
    refuse(path, tmp_path / "effect", match)


@pytest.mark.parametrize(("generation", "ending"), FILES)
def test_cve_2026_0897_a_dataset_declares_far_more_than_it_stores(tmp_path, generation, ending):
    path = save(small_model(generation), tmp_path / f"model{ending}")

    def change(file):
        name = find_dataset(file)
        del file[name]
        file.create_dataset(name, (1 << 20, 1 << 15), "float32", chunks=(1, 1 << 15))

    change_weights(path, change)
    refuse(path, tmp_path / "effect", r"its weights would take 128 GiB of memory")


@pytest.mark.parametrize("generation", [2, 3])
def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, generation):
    path = save(small_model(generation), tmp_path / "model.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(100 << 20))
    refuse(path, tmp_path / "effect", r"unpacking it would take 100 MiB of memory. Expected at")


def test_every_file_that_was_altered_here_loads_before(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    for generation, ending in [*FILES, (2, "")]:
        model = small_model(generation)
        path = save(model, tmp_path / f"model{generation}{ending}")
        assert GENERATIONS[generation].__name__ in ("keras", "tf_keras")
        np.testing.assert_allclose(load_model(path)(x), np.asarray(model(x)), rtol=1e-5, atol=1e-6)
        if ending:
            change_config(path, lambda config: json.dumps(config))
            load_model(path)
