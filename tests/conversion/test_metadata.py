"""Metadata: what is written is read again, and the model is the same to the bit."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as tflite

import kdtflite
from kdtflite.conversion import add_metadata, prove_fully_integer
from kdtflite.errors import ConfigurationError, ModelFileError
from kdtflite.litemodel import LiteModel
from kdtflite.metadata import Metadata, TensorMetadata

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
def labelled(plain):
    return add_metadata(
        plain,
        name="pets",
        description="Tells pets apart.",
        labels=LABELS,
        normalisation=([0.0, 10.0, 20.0], 127.5),
        version="3",
        author="Jane Doe",
        license="Apache-2.0",
        details={"target": "int8"},
    )


@pytest.fixture(scope="module")
def two_ends():
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    left, right = (keras.layers.Dense(n, name=name)(joined) for n, name in ((2, "l"), (1, "r")))
    return kdtflite.convert(keras.Model([a, b], [left, right]), target="float32", progress=False)


def test_everything_written_is_read_again(labelled, tmp_path):
    read = LiteModel.load(labelled.save(tmp_path / "pets.tflite")).metadata
    assert read == Metadata(
        name="pets",
        description="Tells pets apart.",
        version="3",
        author="Jane Doe",
        license="Apache-2.0",
        # One std for all channels stands there once a channel, as readers expect.
        inputs=(TensorMetadata("image", mean=(0.0, 10.0, 20.0), std=(127.5, 127.5, 127.5)),),
        outputs=(TensorMetadata("logits", labels=tuple(LABELS)),),
        details={
            "format": "kdtflite-metadata-1",
            "kdtflite": kdtflite.__version__,
            "target": "int8",
        },
    )
    assert read.labels == tuple(LABELS)
    assert read.normalisation == ((0.0, 10.0, 20.0), (127.5, 127.5, 127.5))
    assert "output logits: 4 labels, cat, dog, Käse, crane" in str(read)


def test_the_labels_are_a_file_that_any_zip_reader_finds(labelled):
    with zipfile.ZipFile(io.BytesIO(labelled.content)) as archive:
        assert archive.namelist() == ["labels.txt", "kdtflite.json"]
        assert archive.read("labels.txt").decode() == "cat\ndog\nKäse\ncrane\n"
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        # Offsets count from the start of the file: readers on a phone take them as they are.
        for entry in archive.infolist():
            at = entry.header_offset
            assert labelled.content[at : at + 4] == b"PK\x03\x04"


def test_the_model_is_the_same_to_the_byte(plain, labelled):
    assert labelled.tensors == plain.tensors
    assert labelled.operators == plain.operators
    assert (labelled.inputs, labelled.outputs) == (plain.inputs, plain.outputs)
    assert labelled.content.count(plain.content) == 1
    # The weights are as aligned as the converter laid them.
    assert labelled.content.index(plain.content) % 16 == 0
    models = [tflite.Model.GetRootAs(lite.content, 0) for lite in (plain, labelled)]
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
def test_the_arithmetic_and_the_proof_are_unchanged(plain, labelled, xnnpack):
    x = RNG.random((50, 6, 6, 3), np.float32)
    np.testing.assert_array_equal(
        labelled.predict(x, dequantize=False, xnnpack=xnnpack),
        plain.predict(x, dequantize=False, xnnpack=xnnpack),
    )
    proofs = [prove_fully_integer(lite).to_dict() for lite in (plain, labelled)]
    sizes = [proof.pop("bytes") for proof in proofs]
    assert proofs[0] == proofs[1]
    assert sizes == [len(plain.content), len(labelled.content)]


def test_two_calls_give_the_same_bytes(plain, monkeypatch):
    first = add_metadata(plain, labels=LABELS)
    # Another day: a zip archive keeps the time, unless told otherwise.
    monkeypatch.setattr("time.localtime", lambda *_: (2031, 2, 3, 4, 5, 6, 0, 1, -1))
    assert add_metadata(plain, labels=LABELS).content == first.content


def test_a_file_of_any_length_keeps_its_weights_aligned(plain):
    # Behind a flatbuffer may lie anything; the root is at the front.
    odd = LiteModel(plain.content + b"\0" * 5)
    labelled = add_metadata(odd, description="odd")
    assert labelled.content.index(plain.content) % 16 == 0
    np.testing.assert_array_equal(labelled.predict(IMAGES), plain.predict(IMAGES))


def test_convert_writes_metadata_only_when_asked(model, plain):
    assert plain.metadata is None
    assert plain.metadata_problem is None
    lite = kdtflite.convert(
        model, IMAGES, labels=LABELS, normalisation=(0, 255), description="Pets.", progress=False
    )
    assert (lite.metadata.name, lite.metadata.description) == ("pets", "Pets.")
    assert lite.metadata.labels == tuple(LABELS)
    assert lite.metadata.normalisation == ((0.0,), (255.0,))
    assert lite.metadata.details["target"] == "int8"
    assert plain.content in lite.content


def test_the_published_files_take_metadata_and_answer_as_before(shared_data):
    for path in sorted((shared_data / "reference_models").glob("*.tflite")):
        plain = LiteModel.load(path)
        classes = plain.outputs[0].shape[-1]
        labels = [f"class {number}" for number in range(classes)]
        labelled = add_metadata(plain, labels=labels, normalisation=(0, 1))
        assert labelled.metadata.labels == tuple(labels)
        x = RNG.uniform(0, 1, (8, *plain.inputs[0].shape[1:])).astype(np.float32)
        np.testing.assert_array_equal(labelled.predict(x), plain.predict(x))


def test_several_inputs_and_outputs_are_named(two_ends):
    lite = add_metadata(
        two_ends, labels={"l": ["no", "yes"], "r": ["off", "on"]}, normalisation={"b": (1, [2, 3])}
    )
    inputs = {tensor.name: tensor for tensor in lite.metadata.inputs}
    outputs = {tensor.name: tensor for tensor in lite.metadata.outputs}
    assert [t.name for t in lite.metadata.inputs] == [spec.name for spec in lite.inputs]
    assert inputs["a"] == TensorMetadata("a")
    assert (inputs["b"].mean, inputs["b"].std) == ((1.0, 1.0), (2.0, 3.0))
    assert outputs["l"].labels == ("no", "yes")
    # A single probability is of the second of two classes.
    assert outputs["r"].labels == ("off", "on")
    with pytest.raises(ConfigurationError, match=r"2 outputs\. Expected `labels` as a dict"):
        add_metadata(two_ends, labels=["no", "yes"])
    with pytest.raises(ConfigurationError, match=r"inputs named .*Received: c"):
        add_metadata(two_ends, normalisation={"c": (0, 1)})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": ["a", "b"]}, r"Expected 4 labels, one a class of output logits .*: 2\."),
        ({"labels": "abcd"}, "Received: the text 'abcd'"),
        ({"labels": ["a", "b", " ", "d"]}, "Received: ' ' for class 2"),
        ({"labels": ["a", "b\nc", "d", "e"]}, r"Received: 'b\\nc' for class 1"),
        ({"normalisation": 255}, r"as \(mean, std\).*Received: 255"),
        ({"normalisation": (0, 0)}, r"std above 0\. Received: \(0, 0\)"),
        ({"normalisation": (float("nan"), 1)}, "each a finite number"),
        ({"normalisation": ([1, 2], 1)}, "one value or 3, one a channel of input image"),
    ],
)
def test_what_does_not_fit_the_file_is_refused(plain, given, said):
    with pytest.raises(ConfigurationError, match=said):
        add_metadata(plain, **given)


def test_what_convert_can_tell_at_once_it_refuses_before_it_converts():
    # No model is asked for anything.
    with pytest.raises(ConfigurationError, match=r"std above 0"):
        kdtflite.convert(None, normalisation=(0, -1))
    with pytest.raises(ConfigurationError, match="for class 0"):
        kdtflite.convert(None, labels=[""])


def test_a_file_that_has_metadata_is_refused(labelled):
    with pytest.raises(ModelFileError, match="one that has them already"):
        add_metadata(labelled, labels=LABELS)


def damaged(content, kind):
    data = bytearray(content)
    if kind == "archive cut off":
        del data[data.index(b"PK\x03\x04") :]
    elif kind == "labels changed":  # the archive knows their checksum
        data[data.index(b"cat\ndog")] ^= 1
    elif kind == "labels no text":
        entry = io.BytesIO()
        with zipfile.ZipFile(entry, "w") as archive:
            archive.writestr("labels.txt", b"\xff\xfe\xff")
            archive.writestr("kdtflite.json", b"{}")
        data[data.index(b"PK\x03\x04") :] = entry.getvalue()
    elif kind == "another format":
        data[data.index(b"M001")] = ord("X")
    elif kind == "a table that leads nowhere":
        at = data.index(b"M001") - 4
        data[at : at + 4] = struct.pack("<I", 2**31)
    elif kind == "details no JSON":
        del data[data.index(b"PK\x03\x04") :]
        entry = io.BytesIO()
        with zipfile.ZipFile(entry, "w") as archive:
            archive.writestr("labels.txt", "a\nb\nc\nd\n")
            archive.writestr("kdtflite.json", b"{")
        data += entry.getvalue()
    return bytes(data)


@pytest.mark.parametrize(
    "kind",
    [
        "archive cut off",
        "labels changed",
        "labels no text",
        "another format",
        "a table that leads nowhere",
        "details no JSON",
    ],
)
def test_a_file_with_damaged_metadata_loads_and_says_so_once(plain, labelled, kind, capfd):
    lite = LiteModel(damaged(labelled.content, kind))
    assert lite.metadata is None
    assert lite.metadata is None
    problem = lite.metadata_problem
    assert problem.startswith("The metadata of the file are damaged and are left out")
    # Wrapped on a terminal, perhaps; said once.
    assert " ".join(capfd.readouterr().err.split()).count("are damaged and are left out") == 1
    np.testing.assert_array_equal(lite.predict(IMAGES), plain.predict(IMAGES))


def test_metadata_damaged_anywhere_never_fail_otherwise(plain, labelled):
    """Every byte of the metadata flatbuffer and of the archive, changed one at a time."""
    start = labelled.content.index(b"M001") - 4
    end = labelled.content.index(plain.content)
    places = [*range(start, end), *range(end + len(plain.content), len(labelled.content))]
    rng = np.random.default_rng(1)
    for place in rng.choice(places, 600, replace=False):
        data = bytearray(labelled.content)
        data[place] ^= int(rng.integers(1, 256))
        lite = LiteModel(bytes(data))
        assert lite.metadata is None or isinstance(lite.metadata, Metadata)


def test_metadata_of_another_writer_are_read(plain):
    """A file whose metadata have no archive, no details and no normalisation."""
    import flatbuffers

    from kdtflite import metadata_schema_py_generated as schema
    from kdtflite.conversion.metadata_entry import with_metadata

    builder = flatbuffers.Builder()
    model = schema.ModelMetadataT(name="theirs")
    builder.Finish(model.Pack(builder), b"M001")
    lite = LiteModel(with_metadata(plain.content, "TFLITE_METADATA", bytes(builder.Output())))
    assert lite.metadata == Metadata(name="theirs")
    assert json.loads(json.dumps(lite.metadata.to_dict()))["inputs"] == []
    assert lite.metadata.normalisation is None
