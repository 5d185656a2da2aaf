"""`kdtflite convert` and tools/convert.py, run for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdtflite.litemodel import LiteModel

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_of_a_checkout_converts_without_installation_or_chatter(workshop, tmp_path):
    data = ("--representative", workshop / "data.npz")
    arguments = [workshop / "model.keras", *data, "--target", "int8"]
    output = tmp_path / "student.tflite"
    done = subprocess.run(
        # -P: not even the current folder is on the path, only what the script puts there.
        [sys.executable, "-P", ROOT / "tools" / "convert.py", *arguments, "-o", output],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Fully integer: 2 operators")
    assert f"{output}: {output.stat().st_size:,} bytes" in done.stdout
    progress = ("Calibrating", "Only ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(progress)] == []
    assert output.read_bytes() == (workshop / "model.tflite").read_bytes()


def test_convert_as_json_with_uint8_ends(invoke, workshop, tmp_path):
    output = tmp_path / "student.tflite"
    result = invoke(
        "convert", workshop / "model.keras", "--representative", workshop / "bytes.npz",
        "--io", "uint8", "--json", "-o", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["proof"]["fully_integer"] is True
    assert said["bytes"] == output.stat().st_size
    spec = LiteModel.load(output).inputs[0]
    # bytes.npz has no channel axis and is scaled to 0..1: both were mended on the way.
    assert (spec.dtype, spec.zero_point) == ("uint8", 0)
    assert spec.scale == pytest.approx(1 / 255, rel=0.01)
    assert "Bytes of" in result.stderr


def test_an_existing_output_is_refused_before_any_work(invoke, workshop, tmp_path):
    output = tmp_path / "student.tflite"
    output.write_text("mine")
    # Neither the model nor the data exist: they were not even looked at.
    result = invoke("convert", "no.keras", "--representative", "no.npz", "-o", output)
    assert result.exit_code == 2
    assert result.stderr == f"Error: {output} exists already. Pass --force to replace it.\n"
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "int9"], "There is no target 'int9'. Did you mean 'int8'?"),
        (["--io", "float64"], "Target 'int8' cannot have float64 inputs and outputs."),
        ([], "Target 'int8' calibrates activations and needs samples. Pass --representative"),
        (["--representative", "digitz"], "There is no data set, file or folder 'digitz'."),
        (
            ["--representative", "digits", "--input-range", "1", "0"],
            "Expected --input-range as LOW HIGH with LOW below HIGH. Received: 1 0.",
        ),
        (
            ["--representative", "x.npz", "--data-path", "y"],
            "--data-path says where a named data set lies",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(invoke, workshop, tmp_path, options, message):
    result = invoke("convert", workshop / "model.keras", "-o", tmp_path / "o.tflite", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {message}")
    assert list(tmp_path.iterdir()) == []
