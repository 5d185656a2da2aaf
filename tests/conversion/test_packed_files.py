"""convert packs what it returns, and names are known where the file has none."""

from __future__ import annotations

import numpy as np
import pytest

import kdtflite
from kdtflite.conversion import prove_target
from kdtflite.conversion.convert import convert
from kdtflite.errors import ConfigurationError
from kdtflite.lite import LiteModel, add_metadata

LAYERS = ["conv", "norm", "relu", "depthwise", "flat", "logits"]


@pytest.fixture(scope="module")
def nameless(student, images):
    return convert(student, images, names="none", labels=list("abcde"), progress=False)


def test_a_converted_file_is_packed_with_all_names(student, images, int8_file):
    loose = convert(student, images, pack=False, progress=False)
    assert kdtflite.pack(loose, "all").content == int8_file.content
    assert len(int8_file.content) < len(loose.content)
    assert [t.name for t in int8_file.tensors] == [t.name for t in loose.tensors]


def test_a_file_without_names_computes_the_same_and_is_smaller(nameless, int8_file, images):
    np.testing.assert_array_equal(nameless.predict(images), int8_file.predict(images))
    assert nameless.metadata.labels == tuple("abcde")
    bare = LiteModel(nameless.content)  # as if it came from a disk
    assert {
        t.name for t in bare.tensors if t.index not in (bare.inputs[0].index, bare.outputs[0].index)
    } == {""}
    assert bare.size_account().names < int8_file.size_account().names / 3


def test_the_proof_names_layers_of_a_file_without_names(nameless, int8_file):
    def find_layers(lite):
        proof = prove_target(lite, "int8", layers=LAYERS).to_dict()
        proof.pop("bytes")
        return proof

    assert find_layers(nameless) == find_layers(int8_file)
    labeled = add_metadata(kdtflite.pack(int8_file, "none"), labels=list("abcde"))
    assert find_layers(labeled) == find_layers(int8_file)


def test_layer_errors_are_the_same_without_names(student, nameless, int8_file, images):
    first, second = (
        kdtflite.layer_errors(student, lite, images[:32], progress=False).to_dict()
        for lite in (nameless, int8_file)
    )
    assert len(first["layers"]) > 3
    assert first == second


def test_names_need_packing(student, images):
    with pytest.raises(ConfigurationError, match="Expected pack=True with names='none'"):
        convert(student, images, pack=False, names="none")
