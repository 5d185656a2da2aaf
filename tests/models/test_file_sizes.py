"""What a file declares is bounded by what it holds, before anything of that size is made."""

import json
import zipfile

import h5py
import numpy as np
import pytest
import tf_keras as keras
from crafted_files import (
    change_config,
    change_member,
    change_weights,
    find_dataset,
    put_layer,
    save,
    set_activation,
    set_in_layer,
    small_model,
)

from kdtflite.errors import KdtfliteError, ModelFileError
from kdtflite.models import load_model
from kdtflite.models.model_files import open_model_file
from kdtflite.models.trust import hdf5
from kdtflite.models.trust.json_texts import parse_json
from kdtflite.models.trust.sizes import allow_bytes, show_bytes

FILES = [(2, ".keras"), (2, ".h5"), (3, ".keras"), (3, ".h5")]


def expect_refusal(path, change, match):
    change_config(path, change)
    with pytest.raises(ModelFileError, match=match):
        load_model(path)


@pytest.mark.parametrize(("generation", "ending"), FILES)
def test_a_layer_of_two_to_the_31_units_is_not_made(tmp_path, generation, ending):
    path = save(small_model(generation), tmp_path / f"model{ending}")
    # 4 x 2^31 kernel values of four bytes
    match = r"too large to be loaded: .*kernel.* \(32 GiB\), but"
    expect_refusal(path, lambda config: set_in_layer(config, units=2**31), match)


def test_a_table_of_an_embedding_is_not_made_either(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Embedding(7, 3, name="first")])
    path = save(model, tmp_path / "model")
    change_config(path, lambda config: None)
    file = save(model, tmp_path / "model.h5")
    match = r"too large to be loaded: .*\(96 GiB\)"
    expect_refusal(file, lambda config: set_in_layer(config, input_dim=2**33), match)
    assert load_model(path).count_params() == 21


@pytest.mark.parametrize(("generation", "ending"), FILES)
def test_an_input_of_a_trillion_values_is_refused(tmp_path, generation, ending):
    path = save(small_model(generation), tmp_path / f"model{ending}")
    key = "batch_input_shape" if generation == 2 else "batch_shape"

    def change(config):
        config["config"]["layers"][0]["config"][key] = [None, 1 << 20, 1 << 20]

    expect_refusal(path, change, rf"declares the '{key}' \[None, 1048576, 1048576\]")


def test_a_call_with_numbers_only_is_not_made(tmp_path):
    path = save(small_model(2), tmp_path / "model.h5")
    settings = {"name": "evil", "function": "zeros", "trainable": True, "dtype": "float32"}
    layer = {"class_name": "TFOpLambda", "config": settings}
    layer["inbound_nodes"] = [[["_CONSTANT_VALUE", -1, [2**31, 16], {}]]]
    match = r"layer 'evil' calls its function with numbers only"
    expect_refusal(path, lambda config: put_layer(config, layer), match)


@pytest.mark.parametrize(("generation", "ending"), FILES)
def test_layers_that_wait_for_each_other_do_not_hang(tmp_path, generation, ending):
    path = save(small_model(generation), tmp_path / f"model{ending}")

    def change(config):
        layers = config["config"]["layers"]
        text = json.dumps(layers[1]["inbound_nodes"]).replace('"x"', '"last"')
        layers[1]["inbound_nodes"] = json.loads(text)

    expect_refusal(path, change, r"layer 'first' takes the output of call 0 of ")


def test_a_call_that_does_not_exist_does_not_hang(tmp_path):
    path = save(small_model(2), tmp_path / "model.keras")

    def change(config):
        config["config"]["layers"][2]["inbound_nodes"][0][0][1] = 5

    expect_refusal(path, change, r"layer 'last' takes the output of call 5 of ")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, r"nested too deeply: its config has more than 120 levels"),
        ("[" * 121 + "]" * 121, r"nested too deeply"),
        ('{"a":' * 121 + "1" + "}" * 121, r"nested too deeply"),
        ("[" + "[]," * 4_000_000 + "[]]", r"has 8,000,002 values"),
        ("{", r"damaged: its config is not JSON"),
        (b"\xff", r"damaged: its config is not JSON"),
        ("[" + "9" * 5000 + "]", r"damaged: its config is not JSON"),
    ],
)
def test_a_json_text_has_bounds(text, match):
    with pytest.raises(ModelFileError, match=match) as raised:
        parse_json(text, "model.keras", "config")
    assert len(str(raised.value)) < 600


def test_120_levels_are_parsed():
    assert parse_json("[" * 120 + "]" * 120, "model.keras", "config")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../outside", r"leads out of the archive"),
        ("assets/../../outside", r"leads out of the archive"),
        ("/outside", r"has an absolute name"),
        ("C:/outside", r"has an absolute name"),
        ("assets\\..\\outside", r"has an absolute name"),
    ],
)
def test_members_have_names_inside_of_the_archive(tmp_path, name, match):
    path = save(small_model(2), tmp_path / "model.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(ModelFileError, match=match):
        load_model(path)


def test_members_are_plain_files_each_once(tmp_path):
    def add(name, **attributes):
        path = save(small_model(2), tmp_path / "model.keras")
        with zipfile.ZipFile(path, "a") as archive:
            member = zipfile.ZipInfo(name)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.writestr(member, "x")
        return path

    with pytest.raises(ModelFileError, match=r"'assets/link' is a link"):
        load_model(add("assets/link", external_attr=0o120777 << 16))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = add("config.json")
    with pytest.raises(ModelFileError, match=r"'config\.json' occurs twice"):
        load_model(path)
    with pytest.raises(ModelFileError, match=r"compressed by method 14, neither"):
        load_model(add("assets/a", compress_type=zipfile.ZIP_LZMA))
    path = add("assets/a")
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(mark) + place] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelFileError, match=r"'assets/a' is encrypted"):
        load_model(path)


def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    path = save(small_model(2), tmp_path / "model.keras")
    match = r"the name '\.\./\.\./elsewhere', which leads"
    expect_refusal(path, lambda config: config["config"].update(name="../../elsewhere"), match)


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_texts_of_varying_length_are_not_read_many_times(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(hdf5, "_MOST_IN_LISTS", 1_000_000)
    path = save(small_model(2), tmp_path / f"model{ending}")

    def change(file):
        kind = h5py.string_dtype()
        place = file[find_dataset(file)].parent
        place.attrs.create("weight_names", ["x" * 100_000] * 20, dtype=kind)

    change_weights(path, change)
    with pytest.raises(ModelFileError, match=r"not self-contained: .*the attribute 'weight_nam"):
        open_model_file(path)


def test_a_filter_that_needs_a_library_is_refused(tmp_path):
    path = save(small_model(2), tmp_path / "model.h5")

    def change(file):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1,))
        properties.set_filter(305, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple((1,))
        h5py.h5d.create(file.id, b"evil", h5py.h5t.NATIVE_FLOAT, space, properties)

    change_weights(path, change)
    with pytest.raises(ModelFileError, match=r"'/evil' is compressed by a filter .*number 305"):
        open_model_file(path)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    path = save(small_model(2), tmp_path / "model.h5")
    change_weights(
        path, lambda file: file.create_dataset("evil", data=["x"], dtype=h5py.string_dtype())
    )
    with pytest.raises(ModelFileError, match=r"'/evil' holds values of varying length"):
        open_model_file(path)


def test_groups_that_contain_each_other_are_walked_once(tmp_path):
    path = save(small_model(2), tmp_path / "model.h5")

    def change(file):
        file["model_weights/first/circle"] = file["/"]

    change_weights(path, change)
    assert open_model_file(path).weight_bytes == 15 * 4


def test_unsafe_is_the_way_out_for_sizes(tmp_path):
    path = save(small_model(2), tmp_path / "model.keras")
    change_member(path, "assets/zeros", bytes(100 << 20), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelFileError, match=r"--unsafe if you trust the file"):
        load_model(path)
    x = np.ones((1, 4), np.float32)
    assert load_model(path, unsafe=True)(x).shape == (1, 3)


def test_odd_configurations_raise_no_foreign_errors(tmp_path):
    odd = [1, [], {}, {"class_name": 3}, {"class_name": ["a"], "config": {}}, {"class_name": None}]
    odd += [{"class_name": "function"}, {"class_name": "function", "config": {"a": 1}}]
    odd += [{"class_name": "Dense", "config": 3, "module": {"a": 1}}, {"class_name": "a.b>c"}]
    for number, value in enumerate(odd):
        path = save(small_model(2), tmp_path / f"model{number}.h5")
        change_config(path, lambda config, value=value: set_activation(config, value))
        with pytest.raises(KdtfliteError):
            load_model(path)


def test_sizes_are_shown_as_people_write_them():
    assert [show_bytes(n) for n in (0, 1023, 1536, 64 << 20, 5 << 40)] == [
        *("0 bytes", "1,023 bytes", "1.5 KiB", "64 MiB", "5 TiB")
    ]
    assert allow_bytes(0) == 64 << 20
    assert allow_bytes(100) - allow_bytes(0) == 2000
