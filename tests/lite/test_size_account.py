"""What the bytes of a file are for: every byte counts once."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdtflite
from kdtflite.lite import LiteModel

MODELS = Path(__file__).resolve().parents[2] / "android_demo" / "models"


@pytest.fixture(scope="module")
def mnist():
    return LiteModel.load(MODELS / "mnist.tflite")


def test_the_parts_add_up_to_the_file(mnist, shared_data):
    files = [mnist, kdtflite.pack(mnist, "all"), kdtflite.pack(mnist, "none")]
    files += [LiteModel.load(p) for p in sorted((shared_data / "reference_models").iterdir())]
    for lite in files:
        account = lite.size_account().to_dict()
        assert account.pop("total") == len(lite.content)
        assert sum(account.values()) == len(lite.content)


def test_each_vector_counts_with_the_four_bytes_of_its_length(mnist):
    account = mnist.size_account()
    biases = [t for t in mnist.tensors if t.is_constant and t.dtype == "int32" and t.scales]
    weights = [t for t in mnist.tensors if t.is_constant and t.dtype == "int8"]
    quantized = [t for t in mnist.tensors if t.scales]
    assert account.weights == sum(t.bytes + 4 for t in weights) == 7624 + 10 * 4
    assert account.biases == sum(t.bytes + 4 for t in biases) == 1256 + 10 * 4
    assert account.other_constants == 8 + 4  # the axes of the pooling
    assert account.scales == sum(4 * len(t.scales) + 4 for t in quantized)
    assert account.zero_points == sum(8 * len(t.scales) + 4 for t in quantized)
    assert account.ranges == 0


def test_packing_takes_zero_points_names_and_tables(mnist):
    before, after = mnist.size_account(), kdtflite.pack(mnist, "none").size_account()
    for part in ("weights", "biases", "other_constants", "scales"):
        assert getattr(after, part) == getattr(before, part)
    lengths = {len(t.scales) for t in mnist.tensors if t.scales}
    assert after.zero_points >= sum(8 * length + 4 for length in lengths)
    assert after.zero_points < before.zero_points / 3
    assert after.names < 150 < 3000 < before.names
    assert after.tables < before.tables


def test_it_is_shown_as_a_table(mnist):
    text = str(mnist.size_account())
    assert "zero points" in text
    assert "25,619" in text
    assert text.endswith("8,972 of 25,619 bytes (35%) are weights, biases and other constants.")
