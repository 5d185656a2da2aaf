"""`kdtflite convert` and tools/convert.py, run for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdtflite.lite.kernel_sets import compare_outputs
from kdtflite.lite.model import LiteModel

ROOT = Path(__file__).resolve().parents[2]


def test_the_script_of_a_checkout_converts_without_installation_or_chatter(workshop, tmp_path):
    data = ("--representative", workshop / "data.npz")
    arguments = [workshop / "model.keras", *data, "--target", "int8"]
    output = tmp_path / "student.tflite"
    done = subprocess.run(
        # -I: not even the current folder is on the path, only what the script puts there.
        [sys.executable, "-I", ROOT / "tools" / "convert.py", *arguments, "-o", output],
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
    printed = json.loads(result.stdout)
    assert printed["proof"]["fully_integer"] is True
    assert printed["bytes"] == output.stat().st_size
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
            "Expected --data-path only with a named data set",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(invoke, workshop, tmp_path, options, message):
    result = invoke("convert", workshop / "model.keras", "-o", tmp_path / "o.tflite", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {message}")
    assert list(tmp_path.iterdir()) == []


def _model_of_bytes(first):
    """A model that scales its inputs itself and finds the lightest of four pixels."""
    import tf_keras as keras

    scores = keras.layers.Dense(4, kernel_initializer="identity")
    return keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.Sequential([keras.layers.RandomFlip(), first], name="preprocessing"),
            keras.layers.Flatten(),
            # Sharp about the middle: bytes scaled twice all look black.
            keras.layers.Dense(4, "relu", kernel_initializer=keras.initializers.Identity(4.0)),
            scores,
        ]
    )


@pytest.mark.parametrize("kind", ["Rescaling", "Normalization"])
def test_a_model_that_scales_bytes_itself_gets_them_as_they_are(
    invoke, workshop, tmp_path, capsys, kind
):
    import tf_keras as keras

    with np.load(workshop / "bytes.npz") as data:
        x, y = data["x"][..., np.newaxis].astype(np.float32), data["y"]
    first = keras.layers.Rescaling(1 / 255) if kind == "Rescaling" else keras.layers.Normalization()
    if kind == "Normalization":
        first.adapt(x)
    model = _model_of_bytes(first)
    model.save(tmp_path / "model.keras")
    accuracy = float((model.predict(x, verbose=0).argmax(1) == y).mean())
    assert accuracy == 1.0
    output, bytes_file = tmp_path / "model.tflite", workshop / "bytes.npz"
    converted = invoke(
        "convert", tmp_path / "model.keras", "--representative", bytes_file, "-o", output
    )
    assert converted.exit_code == 0, converted.stderr
    assert f"since layer {first.name!r} of the model scales it" in converted.stderr
    assert LiteModel.load(output).inputs[0].scale == pytest.approx(1.0, rel=0.02)
    # The file itself tells that bytes scaled to 0..1 are wrong for it, and what is right.
    refused = invoke("evaluate", output, "--data", bytes_file)
    assert refused.exit_code == 2
    assert "for example --input-range 0 255" in refused.stderr
    done = invoke("evaluate", output, "--data", bytes_file, "--input-range", 0, 255, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == accuracy


def test_a_first_layer_for_values_from_0_to_1_changes_nothing(invoke, workshop, tmp_path):
    import tf_keras as keras

    _model_of_bytes(keras.layers.Rescaling(2.0, -1.0)).save(tmp_path / "model.keras")
    output = tmp_path / "model.tflite"
    data = workshop / "bytes.npz"
    done = invoke("convert", tmp_path / "model.keras", "--representative", data, "-o", output)
    assert done.exit_code == 0, done.stderr
    assert "scaled from 0..255 to 0..1" in done.stderr
    assert LiteModel.load(output).inputs[0].scale == pytest.approx(1 / 255, rel=0.02)


def test_convert_writes_the_given_values_into_the_metadata(invoke, workshop, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("north\nsüd\neast\nwest\n", encoding="utf-8")
    output = tmp_path / "student.tflite"
    result = invoke(
        "convert", workshop / "model.keras", "--representative", workshop / "data.npz",
        "--labels", labels, "--normalization", 0, 255, "--description", "Where the light is.",
        "--author", "Jane Doe", "--license", "MIT", "-o", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    metadata = LiteModel.load(output).metadata
    assert metadata.labels == ("north", "süd", "east", "west")
    assert metadata.normalization == ((0.0,), (255.0,))
    assert (metadata.description, metadata.author) == ("Where the light is.", "Jane Doe")
    assert metadata.license == "MIT"
    plain = (workshop / "model.tflite").read_bytes()
    assert [each.equal for each in compare_outputs(plain, output.read_bytes())] == 3 * [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb", "labels.txt: Expected each of `labels` as a text of one line"),
        (b"\xff\xfe\x00", "Expected --labels to name a text file in UTF-8"),
    ],
)
def test_wrong_labels_are_refused_before_the_model_is_read(invoke, tmp_path, content, message):
    labels = tmp_path / "labels.txt"
    labels.write_bytes(content)
    result = invoke("convert", "no.keras", "--labels", labels, "-o", tmp_path / "x.tflite")
    assert result.exit_code == 2
    assert message in result.stderr
