"""`kdtflite golden` on a file that gives its input back."""

from __future__ import annotations

import base64
import json

import numpy as np


def test_golden_vectors_are_those_of_the_data(invoke, workshop, tmp_path):
    output = tmp_path / "golden.json"
    result = invoke(
        "golden", workshop / "model.tflite", "--data", workshop / "data.npz", "-n", 8, "-o", output
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("8 samples of model.tflite with the outputs of LiteRT's")
    golden = json.loads(output.read_text())
    assert golden["format"] == "kdtflite-golden-1"
    x = np.load(workshop / "data.npz")["x"]
    for row, sample in zip(np.arange(8) * 9, golden["samples"], strict=True):  # 0, 9, ... 63 of 64
        real = np.frombuffer(base64.b64decode(sample["inputs"][0]["float"]), "<f4")
        np.testing.assert_array_equal(real, x[row].ravel())
        # The weights are the identity: the answer is the sample, within the steps of both ends.
        answer = np.frombuffer(base64.b64decode(sample["outputs"][0]["dequantized"]), "<f4")
        np.testing.assert_allclose(answer, real, atol=0.01)


def test_without_data_random_samples_are_written(invoke, workshop, tmp_path):
    output = tmp_path / "golden.json"
    result = invoke("golden", workshop / "float.tflite", "-o", output, "--input-range", -3, 3,
                    "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 128
    samples = json.loads(output.read_text())["samples"]
    real = np.concatenate(
        [np.frombuffer(base64.b64decode(s["inputs"][0]["float"]), "<f4") for s in samples]
    )
    assert -3 <= real.min() < -2.9
    assert 2.9 < real.max() <= 3


def test_a_file_in_the_way_is_refused_before_the_work(invoke, tmp_path):
    output = tmp_path / "golden.json"
    output.write_text("mine")
    result = invoke("golden", "no.tflite", "-o", output)
    assert result.exit_code == 2
    assert result.stderr == f"Error: {output} exists already. Pass --force to replace it.\n"
    assert output.read_text() == "mine"


def test_a_file_in_the_way_is_replaced_with_force(invoke, workshop, tmp_path):
    output = tmp_path / "golden.json"
    output.write_text("mine")
    result = invoke("golden", workshop / "model.tflite", "-n", 1, "-o", output, "--force")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(output.read_text())["samples"]) == 1
