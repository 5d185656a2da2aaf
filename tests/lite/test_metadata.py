"""Metadata: they are read as they were written, and the model stays the same to the bit."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert import schema_py_generated as tflite

import kdtflite
from kdtflite.conversion import prove_fully_integer
from kdtflite.errors import ConfigurationError, ModelFileError
from kdtflite.lite import Metadata, TensorMetadata, add_metadata
from kdtflite.lite.model import LiteModel

RNG = np.random.default_rng(0)
IMAGES = RNG.random((16, 6, 6, 3), np.float32)
LABELS = ["cat", "dog", "Käse", "crane"]


@pytest.fixture(scope="module")
def model():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3), name="image")
    biased = {"bias_initializer": "random_uniform"}
    x = keras.layers.Conv2D(5, 3, activation="relu", **biased)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits", **biased)(x), name="pets")


@pytest.fixture(scope="module")
def plain(model):
    return kdtflite.convert(model, IMAGES, progress=False)


@pytest.fixture(scope="module")
def labeled(plain):
    return add_metadata(
        plain,
        name="pets",
        description="Tells pets apart.",
        labels=LABELS,
        normalization=([0.0, 10.0, 20.0], 127.5),
        version="3",
        author="Jane Doe",
        license="Apache-2.0",
        details={"target": "int8"},
    )


@pytest.fixture(scope="module")
def two_outputs():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    left, right = (keras.layers.Dense(n, name=name)(joined) for n, name in ((2, "l"), (1, "r")))
    return kdtflite.convert(keras.Model([a, b], [left, right]), target="float32", progress=False)


def test_everything_written_is_read_again(labeled, tmp_path):
    read = LiteModel.load(labeled.save(tmp_path / "pets.tflite")).metadata
    assert read == Metadata(
        name="pets",
        description="Tells pets apart.",
        version="3",
        author="Jane Doe",
        license="Apache-2.0",
        # One std for all channels is stored once per channel, as readers expect.
        inputs=(TensorMetadata("image", mean=(0.0, 10.0, 20.0), std=(127.5, 127.5, 127.5)),),
        outputs=(TensorMetadata("logits", labels=tuple(LABELS)),),
        details={
            "format": "kdtflite-metadata-1",
            "kdtflite": kdtflite.__version__,
            "target": "int8",
        },
    )
    assert read.labels == tuple(LABELS)
    assert read.normalization == ((0.0, 10.0, 20.0), (127.5, 127.5, 127.5))
    assert "output logits: 4 labels, cat, dog, Käse, crane" in str(read)


def test_any_zip_reader_finds_the_labels(labeled):
    with zipfile.ZipFile(io.BytesIO(labeled.content)) as archive:
        assert archive.namelist() == ["labels.txt", "kdtflite.json"]
        assert archive.read("labels.txt").decode() == "cat\ndog\nKäse\ncrane\n"
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        # Offsets count from the start of the file: readers on a phone use them as they are.
        for entry in archive.infolist():
            at = entry.header_offset
            assert labeled.content[at : at + 4] == b"PK\x03\x04"


def test_the_model_is_the_same_to_the_byte(plain, labeled):
    assert labeled.tensors == plain.tensors
    assert labeled.operators == plain.operators
    assert (labeled.inputs, labeled.outputs) == (plain.inputs, plain.outputs)
    assert labeled.content.count(plain.content) == 1
    # The weights keep the converter's alignment.
    assert labeled.content.index(plain.content) % 16 == 0
    models = [tflite.Model.GetRootAs(lite.content, 0) for lite in (plain, labeled)]
    before, after = (buffers(model) for model in models)
    assert after[: len(before)] == before
    names = [[m.Metadata(i).Name() for i in range(m.MetadataLength())] for m in models]
    assert names[1] == [*names[0], b"TFLITE_METADATA"]
    assert models[1].Version() == 3
    assert models[1].SignatureDefsLength() == models[0].SignatureDefsLength() == 1


def buffers(model):
    held = (model.Buffers(i) for i in range(model.BuffersLength()))
    return [b.DataAsNumpy().tobytes() if b.DataLength() else b"" for b in held]


@pytest.mark.parametrize("xnnpack", [True, False])
def test_the_arithmetic_and_the_proof_are_unchanged(plain, labeled, xnnpack):
    x = RNG.random((50, 6, 6, 3), np.float32)
    np.testing.assert_array_equal(
        labeled.predict(x, dequantize=False, xnnpack=xnnpack),
        plain.predict(x, dequantize=False, xnnpack=xnnpack),
    )
    proofs = [prove_fully_integer(lite).to_dict() for lite in (plain, labeled)]
    sizes = [proof.pop("bytes") for proof in proofs]
    assert proofs[0] == proofs[1]
    assert sizes == [len(plain.content), len(labeled.content)]


def test_two_calls_give_the_same_bytes(plain, monkeypatch):
    first = add_metadata(plain, labels=LABELS)
    # Another day: a zip archive stores the time by default.
    monkeypatch.setattr("time.localtime", lambda *_: (2031, 2, 3, 4, 5, 6, 0, 1, -1))
    assert add_metadata(plain, labels=LABELS).content == first.content


def test_a_file_of_any_length_keeps_its_weights_aligned(plain):
    # Anything may follow a flatbuffer: its root is at the front.
    odd = LiteModel(plain.content + b"\0" * 5)
    labeled = add_metadata(odd, description="odd")
    assert labeled.content.index(plain.content) % 16 == 0
    np.testing.assert_array_equal(labeled.predict(IMAGES), plain.predict(IMAGES))


def test_convert_writes_metadata_only_when_asked(model, plain):
    assert plain.metadata is None
    assert plain.metadata_problem is None
    lite = kdtflite.convert(
        model, IMAGES, labels=LABELS, normalization=(0, 255), description="Pets.", progress=False
    )
    assert (lite.metadata.name, lite.metadata.description) == ("pets", "Pets.")
    assert lite.metadata.labels == tuple(LABELS)
    assert lite.metadata.normalization == ((0.0,), (255.0,))
    assert lite.metadata.details["target"] == "int8"
    assert (lite.tensors, lite.operators) == (plain.tensors, plain.operators)
    np.testing.assert_array_equal(lite.predict(IMAGES), plain.predict(IMAGES))


def test_the_published_files_predict_the_same_with_metadata(shared_data):
    for path in sorted((shared_data / "reference_models").glob("*.tflite")):
        plain = LiteModel.load(path)
        classes = plain.outputs[0].shape[-1]
        labels = [f"class {number}" for number in range(classes)]
        labeled = add_metadata(plain, labels=labels, normalization=(0, 1))
        assert labeled.metadata.labels == tuple(labels)
        x = RNG.uniform(0, 1, (8, *plain.inputs[0].shape[1:])).astype(np.float32)
        np.testing.assert_array_equal(labeled.predict(x), plain.predict(x))


def test_several_inputs_and_outputs_are_named(two_outputs):
    lite = add_metadata(
        two_outputs,
        labels={"l": ["no", "yes"], "r": ["off", "on"]},
        normalization={"b": (1, [2, 3])},
    )
    inputs = {tensor.name: tensor for tensor in lite.metadata.inputs}
    outputs = {tensor.name: tensor for tensor in lite.metadata.outputs}
    assert [t.name for t in lite.metadata.inputs] == [spec.name for spec in lite.inputs]
    assert inputs["a"] == TensorMetadata("a")
    assert (inputs["b"].mean, inputs["b"].std) == ((1.0, 1.0), (2.0, 3.0))
    assert outputs["l"].labels == ("no", "yes")
    # A single probability belongs to the second of two classes.
    assert outputs["r"].labels == ("off", "on")
    with pytest.raises(ConfigurationError, match=r"2 outputs\. Expected `labels` as a dict"):
        add_metadata(two_outputs, labels=["no", "yes"])
    with pytest.raises(ConfigurationError, match=r"inputs named .*Received: c"):
        add_metadata(two_outputs, normalization={"c": (0, 1)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ["a", "b"]}, r"Expected 4 labels, one per class of output logits .*: 2\."),
        ({"labels": "abcd"}, "labels= to be a list of strings.*Received: 'abcd'"),
        ({"labels": ["a", "b", " ", "d"]}, "Received: ' ' for class 2"),
        ({"labels": ["a", "b\nc", "d", "e"]}, r"Received: 'b\\nc' for class 1"),
        ({"normalization": 255}, r"as \(mean, std\).*Received: 255"),
        ({"normalization": (0, 0)}, r"std above 0\. Received: \(0, 0\)"),
        ({"normalization": (float("nan"), 1)}, "each a finite number"),
        ({"normalization": ([1, 2], 1)}, "one value or 3, one per channel of input image"),
    ],
)
def test_metadata_that_do_not_fit_the_file_are_refused(plain, given, message):
    with pytest.raises(ConfigurationError, match=message):
        add_metadata(plain, **given)


def test_convert_checks_metadata_before_it_converts():
    # Without representative data: it never gets as far as asking for them.
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ConfigurationError, match=r"std above 0"):
        kdtflite.convert(model, normalization=(0, -1))
    with pytest.raises(ConfigurationError, match="for class 0"):
        kdtflite.convert(model, labels=[""])


def test_a_file_that_has_metadata_is_refused(labeled):
    with pytest.raises(ModelFileError, match="one that already has some"):
        add_metadata(labeled, labels=LABELS)


FOUR = b"a\nb\nc\nd\n"
# What the archive holds as labels and details, and how it is compressed.
ARCHIVES = {
    "labels not text": (b"\xff\xfe\xff", b"{}", zipfile.ZIP_STORED),
    "labels beyond 4 MB": (b"a\n" * (1 << 21) + b"a", b"{}", zipfile.ZIP_DEFLATED),
    "labels in lzma": (FOUR, b"{}", zipfile.ZIP_LZMA),
    "labels in bzip2": (FOUR, b"{}", zipfile.ZIP_BZIP2),
    "details not JSON": (FOUR, b"{", zipfile.ZIP_STORED),
    "details no object": (FOUR, b"[]", zipfile.ZIP_STORED),
    "details too deep": (FOUR, b"[" * 100_000, zipfile.ZIP_STORED),
    "details beyond 4 MB": (FOUR, b" " * (1 << 22) + b"{}", zipfile.ZIP_DEFLATED),
}


def damage(content, kind):
    data = bytearray(content)
    if kind == "archive cut off":
        del data[data.index(b"PK\x03\x04") :]
    elif kind == "labels changed":  # the archive knows their checksum
        data[data.index(b"cat\ndog")] ^= 1
    elif kind in ARCHIVES:
        labels, details, method = ARCHIVES[kind]
        entry = io.BytesIO()
        with zipfile.ZipFile(entry, "w", method) as archive:
            archive.writestr("labels.txt", labels)
            archive.writestr("kdtflite.json", details)
        data[data.index(b"PK\x03\x04") :] = entry.getvalue()
    elif kind == "labels encrypted":
        for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = -1
            while (start := data.find(mark, start + 1)) >= 0:
                data[start + place] |= 1
    elif kind == "another format":
        data[data.index(b"M001")] = ord("X")
    elif kind == "a table that points nowhere":
        at = data.index(b"M001") - 4
        data[at : at + 4] = struct.pack("<I", 2**31)
    return bytes(data)


@pytest.mark.parametrize(
    "kind",
    [
        *ARCHIVES,
        "archive cut off",
        "labels changed",
        "labels encrypted",
        "another format",
        "a table that points nowhere",
    ],
)
def test_a_file_with_damaged_metadata_loads_and_says_so_once(plain, labeled, kind, capfd):
    lite = LiteModel(damage(labeled.content, kind))
    assert lite.metadata is None
    assert lite.metadata is None
    problem = lite.metadata_problem
    assert problem.startswith("The metadata of the file is damaged and is ignored")
    # The console may wrap it; it is reported once.
    assert " ".join(capfd.readouterr().err.split()).count("is damaged and is ignored") == 1
    np.testing.assert_array_equal(lite.predict(IMAGES), plain.predict(IMAGES))


def test_labels_of_exactly_4_mb_are_read(labeled):
    data = bytearray(labeled.content)
    entry = io.BytesIO()
    with zipfile.ZipFile(entry, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", b"a\n" * (1 << 21))
        archive.writestr("kdtflite.json", b"{}")
    data[data.index(b"PK\x03\x04") :] = entry.getvalue()
    assert LiteModel(bytes(data)).metadata.labels == ("a",) * (1 << 21)


def test_metadata_damaged_anywhere_never_fail_otherwise(plain, labeled):
    """Every byte of the metadata flatbuffer and of the archive, changed one at a time."""
    start = labeled.content.index(b"M001") - 4
    end = labeled.content.index(plain.content)
    places = [*range(start, end), *range(end + len(plain.content), len(labeled.content))]
    rng = np.random.default_rng(1)
    for place in rng.choice(places, 600, replace=False):
        data = bytearray(labeled.content)
        data[place] ^= int(rng.integers(1, 256))
        lite = LiteModel(bytes(data))
        assert lite.metadata is None or isinstance(lite.metadata, Metadata)


def test_metadata_of_another_writer_are_read(plain):
    """A file whose metadata have no archive, no details and no normalization."""
    import flatbuffers

    from kdtflite.lite._generated import metadata_schema as schema
    from kdtflite.lite.metadata_entry import add_metadata_entry

    builder = flatbuffers.Builder()
    model = schema.ModelMetadataT(name="theirs")
    builder.Finish(model.Pack(builder), b"M001")
    lite = LiteModel(add_metadata_entry(plain.content, "TFLITE_METADATA", bytes(builder.Output())))
    assert lite.metadata == Metadata(name="theirs")
    assert json.loads(json.dumps(lite.metadata.to_dict()))["inputs"] == []
    assert lite.metadata.normalization is None
