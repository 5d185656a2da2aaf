"""`kdtflite pack` and `kdtflite inspect --bytes` on the file of a student."""

from __future__ import annotations

import json
from pathlib import Path

from kdtflite.lite.model import LiteModel

MNIST = Path(__file__).resolve().parents[2] / "android_demo" / "models" / "mnist.tflite"


def test_pack_says_what_it_took_off_and_what_it_compared(invoke, tmp_path):
    output = tmp_path / "packed.tflite"
    result = invoke("pack", MNIST, "-o", output)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        f"{output}: 18,851 bytes instead of 25,619 (-26.4%); the same outputs, bit by bit, with "
        "XNNPACK, built-in, reference kernels\n"
    )
    assert LiteModel.load(output).metadata == LiteModel.load(MNIST).metadata


def test_pack_writes_beside_the_file_unless_told_otherwise_and_never_over_another(invoke, tmp_path):
    given = tmp_path / "mnist.tflite"
    given.write_bytes(MNIST.read_bytes())
    result = invoke("pack", given, "--names", "none", "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    output = tmp_path / "mnist.packed.tflite"
    assert printed["output"] == str(output)
    assert (printed["bytes_before"], printed["bytes"]) == (25_619, output.stat().st_size)
    assert printed["equal_outputs"] == dict.fromkeys(("XNNPACK", "built-in", "reference"), True)
    again = invoke("pack", given)
    assert again.exit_code == 2
    assert "--force" in again.stderr


def test_pack_refuses_an_unknown_choice_of_names_before_it_reads_the_file(invoke, tmp_path):
    result = invoke("pack", tmp_path / "no.tflite", "--names", "short")
    assert result.exit_code == 2
    assert "Expected names as one of all, layers, none. Received: short." in result.stderr


def test_inspect_shows_what_the_bytes_are_for(invoke):
    text = invoke("inspect", MNIST, "--bytes").stdout
    assert "zero points" in text
    assert "8,972 of 25,619 bytes (35%) are weights, biases and other constants." in text
    account = json.loads(invoke("inspect", MNIST, "--json").stdout)["size_account"]
    assert account.pop("total") == sum(account.values()) == 25_619
