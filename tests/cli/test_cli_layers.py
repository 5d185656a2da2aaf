"""`kdtflite layers` on a file whose layers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest


def arguments(workshop, *more):
    named = (workshop / "model.keras", workshop / "model.tflite", "--data", workshop / "data.npz")
    return ("layers", *named, *more)


def test_each_layer_has_its_error_and_the_picture_is_drawn(invoke, workshop, tmp_path):
    picture = tmp_path / "layers.png"
    result = invoke(*arguments(workshop, "--plot", picture, "--json"))
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["samples"] == 64
    by_name = {layer["layer"]: layer for layer in printed["layers"]}
    assert by_name["scores"]["operator"] == "FULLY_CONNECTED"
    # Values evenly spread over a step of their grid are off by a step over sqrt(12).
    image = by_name["image"]
    assert image["mse"] == pytest.approx(image["scale"] ** 2 / 12, rel=0.3)
    assert by_name["scores"]["sqnr"] > 35
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = invoke(*arguments(workshop, "--plot", picture))
    assert again.exit_code == 2
    assert again.stderr == f"Error: {picture} exists already. Pass --force to replace it.\n"


def test_the_table_names_the_worst_layer_and_the_kernels(invoke, workshop):
    result = invoke(*arguments(workshop, "--samples", 8, "--no-xnnpack"))
    assert result.exit_code == 0, result.stderr
    assert "tensors of the file compared on 8 samples, run with the built-in" in result.stdout
    assert "Lowest SQNR: " in result.stdout
    assert "\n scores " in result.stdout


def test_code_by_code_a_student_and_its_file_agree(invoke, workshop, tmp_path):
    import kdtflite

    x = np.load(workshop / "data.npz")["x"]
    student = kdtflite.quantize_aware(kdtflite.load_model(workshop / "model.keras"), x)
    student.save(tmp_path / "student.keras")
    kdtflite.convert(student, x, progress=False).save(tmp_path / "student.tflite")
    result = invoke(
        *("layers", tmp_path / "student.keras", tmp_path / "student.tflite"),
        *("--data", workshop / "data.npz", "--steps", 1, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["first"] is None
    assert [tensor["layer"] for tensor in printed["tensors"]][-1] == "scores"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--steps", 1), "a float model, which the file cannot equal"),
        (("--steps", 1, "--plot", "p.png"), "Expected --plot or --steps"),
        (("--plot", "p.gif"), "kind of picture"),
    ],
)
def test_what_does_not_fit_is_refused(invoke, workshop, more, message):
    result = invoke(*arguments(workshop, *more))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_model_is_named(invoke, workshop, tmp_path):
    result = invoke(
        *("layers", tmp_path / "no.keras", workshop / "model.tflite"),
        *("--data", workshop / "data.npz"),
    )
    assert result.exit_code == 2
    assert "no.keras" in result.stderr
