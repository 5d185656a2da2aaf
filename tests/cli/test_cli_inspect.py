"""`kdtflite inspect` against what is known of the files."""

from __future__ import annotations

import json

import pytest


def test_inspect_proves_an_integer_file(invoke, workshop):
    path = workshop / "model.tflite"
    result = invoke("inspect", path)
    assert result.exit_code == 0, result.stderr
    assert f"{path}: {path.stat().st_size:,} bytes" in result.stdout
    assert "input image: int8 [1, 2, 2, 1], scale 0.00392" in result.stdout
    assert "FULLY_CONNECTED × 1" in result.stdout
    assert "Fully integer: 2 operators" in result.stdout
    assert "ran once with XNNPACK" in result.stdout


def test_inspect_lists_what_is_not_integer_and_succeeds(invoke, workshop):
    result = invoke("inspect", workshop / "float.tflite")
    assert result.exit_code == 0, result.stderr
    assert "input image: float32 [1, 2, 2, 1], not quantized" in result.stdout
    verdict = result.stdout.split("Not fully integer:\n")[1]
    assert "operator 1 FULLY_CONNECTED reads the float32 tensor" in verdict
    assert "  the input 'image' is float32\n" in verdict


def test_inspect_as_json_has_every_tensor(invoke, workshop):
    result = invoke("inspect", workshop / "model.tflite", "--json", "--tensors")
    described = json.loads(result.stdout)
    assert described["fully_integer"] is True
    assert described["not_integer"] == []
    assert described["bytes"] == (workshop / "model.tflite").stat().st_size
    assert described["operators"] == {"RESHAPE": 1, "FULLY_CONNECTED": 1}
    assert described["inputs"][0]["scale"] == pytest.approx(1 / 255, rel=0.01)
    assert described["inputs"][0]["zero_point"] == -128
    assert len(described["tensors"]) == sum(described["tensor_dtypes"].values())


def test_inspect_prints_a_table_of_tensors(invoke, workshop):
    result = invoke("inspect", workshop / "model.tflite", "--tensors")
    assert "zero point" in result.stdout
    assert "1×2×2×1" in result.stdout


@pytest.mark.parametrize(
    ("name", "integer", "first"),
    [("pretrainedResnet_quant", True, "int8"), ("pretrainedResnet", False, "float32")],
)
def test_inspect_reads_files_that_others_made(invoke, shared_data, name, integer, first):
    result = invoke("inspect", shared_data / "reference_models" / f"{name}.tflite", "--json")
    described = json.loads(result.stdout)
    assert described["fully_integer"] is integer
    assert described["inputs"][0]["dtype"] == first
    assert described["operators"]["CONV_2D"] == 9


def test_inspect_shows_the_metadata(invoke, workshop, tmp_path):
    from kdtflite.lite import add_metadata
    from kdtflite.lite.model import LiteModel

    plain = LiteModel.load(workshop / "model.tflite")
    path = tmp_path / "labeled.tflite"
    add_metadata(plain, labels=["n", "s", "e", "w"], normalization=(0, 255)).save(path)
    result = invoke("inspect", path)
    assert result.exit_code == 0, result.stderr
    assert "metadata:\n  input image: (value - 0) / 255\n" in result.stdout
    assert "  output scores: 4 labels, n, s, e, w\n  kdtflite: " in result.stdout
    described = json.loads(invoke("inspect", path, "--json").stdout)
    assert described["metadata"]["outputs"][0]["labels"] == ["n", "s", "e", "w"]
    assert described["metadata_problem"] is None
    assert json.loads(invoke("inspect", workshop / "model.tflite", "--json").stdout)[
        "metadata"
    ] is None  # fmt: skip


def test_inspect_says_that_metadata_are_damaged_and_shows_the_rest(invoke, workshop, tmp_path):
    from kdtflite.lite import add_metadata
    from kdtflite.lite.model import LiteModel

    lite = add_metadata(LiteModel.load(workshop / "model.tflite"), labels=["n", "s", "e", "w"])
    path = tmp_path / "cut.tflite"
    path.write_bytes(lite.content[: lite.content.index(b"PK\x03\x04")])
    result = invoke("inspect", path)
    assert result.exit_code == 0
    assert "Fully integer: 2 operators" in result.stdout
    assert "metadata:" not in result.stdout
    assert "The metadata of the file is damaged and is ignored" in result.stderr
