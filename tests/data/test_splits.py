import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtflite.data import Dataset, Split, as_labels, stratified_split
from kdtflite.errors import ConfigurationError, DataError


def _split(samples=4, classes=2, low=0.0, high=1.0):
    x = np.linspace(low, high, samples * 4, dtype=np.float64).reshape(samples, 2, 2, 1)
    return Split(x, np.arange(samples, dtype=np.uint8) % classes)


def test_a_split_holds_float32_samples_and_int64_labels():
    split = _split()
    assert (split.x.dtype, split.y.dtype, len(split)) == (np.float32, np.int64, 4)
    assert Split(np.ones((2, 5), np.int64), np.array([0, 1])).x.dtype == np.int32


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 2)), np.array([0, 1]), "3 samples and 2 labels"),
        (np.ones((0, 2)), np.array([], int), "at least one sample"),
        (np.ones((2, 0)), np.array([0, 1]), "at least one sample"),
        (np.array([[1.0], [np.nan]]), np.array([0, 1]), "first in sample 1"),
        (np.array([[1.0], [-np.inf]]), np.array([0, 1]), "NaN or infinity in 1 of 2"),
        (np.ones((2, 2)), np.array([0.0, 1.0]), "labels as integers"),
        (np.ones((2, 2)), np.array([[1, 0], [0, 1]]), "as_labels"),
        (np.ones((2, 2)), np.array([0, -1]), "-1 at sample 1"),
        (np.ones((2, 2), np.uint8), np.array([0, 1]), "Divide pixels by 255"),
        (np.ones(2), np.array([0, 1]), "sample axis"),
        (np.array([["a"], ["b"]]), np.array([0, 1]), "floating or signed integer"),
    ],
)
def test_a_split_refuses_what_cannot_be_trained_on(x, y, message):
    with pytest.raises(DataError, match=message):
        Split(x, y)


def _dataset(**changes):
    parts = {part: _split() for part in ("train", "validation", "test")}
    settings = {"class_names": ("cat", "dog"), "input_range": (0, 1), **parts, **changes}
    return Dataset(name="pets", **settings)


def test_a_dataset_sums_itself_up_for_json():
    summary = _dataset(license="CC0").to_dict()
    assert summary["sample_shape"] == [2, 2, 1]
    assert summary["splits"]["test"] == {"samples": 4, "samples_per_class": [2, 2]}
    assert (summary["input_range"], summary["license"]) == ([0.0, 1.0], "CC0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": _split(classes=3)}, r"test: expected 0 to 1.*Received: 2 at sample 2"),
        ({"validation": _split(high=1.5)}, r"validation.*values from 0 to 1\.5"),
        ({"input_range": (1, 1)}, "low below high"),
        ({"test": Split(np.ones((1, 3)), np.array([0]))}, r"\(3,\) in test"),
    ],
)
def test_a_dataset_refuses_splits_that_do_not_fit_together(changes, message):
    with pytest.raises(DataError, match=message):
        _dataset(**changes)


def test_labels_of_every_usual_kind_become_indices(capfd):
    for y in ([2, 0, 1], [[2], [0], [1]], [2.0, 0.0, 1.0], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]):
        found = as_labels(y)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, [2, 0, 1])
    message = capfd.readouterr().err
    assert "one-hot rows of 3 classes" in message
    assert "float64 converted" in message


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.0, 0.5], r"0\.5 at sample 1"),
        ([np.nan, 1.0], "nan at sample 0"),
        ([[0.2, 0.8], [1, 0]], "argmax of soft labels"),
        ([[1, 1], [1, 0]], "single 1"),
        (["cat", "dog"], "`class_names` in a data set or .npz file, `labels` for evaluate"),
        (np.zeros((2, 2, 2)), "whole samples"),
    ],
)
def test_labels_that_are_no_classes_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        as_labels(y)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stratified_split_keeps_every_sample_once_and_every_share(sizes, share, seed):
    y = np.repeat(np.arange(len(sizes)), sizes)
    count = round(share * len(y))
    if not 0 < count < len(y):
        with pytest.raises(ConfigurationError, match="hold out at least 1"):
            stratified_split(y, share, seed=seed)
        return
    keep, out = stratified_split(y, share, seed=seed)
    assert len(out) == count
    np.testing.assert_array_equal(np.sort(np.concatenate([keep, out])), np.arange(len(y)))
    taken = np.bincount(y[out], minlength=len(sizes))
    # Largest remainders: no class is a whole sample off its share.
    assert np.abs(taken - np.array(sizes) * count / len(y)).max() < 1


def test_a_stratified_split_does_not_move_between_versions():
    # Stored once: results on a held-out part are comparable only while it stays the same.
    _, out = stratified_split(np.arange(20) % 2, 4, seed=7)
    np.testing.assert_array_equal(out, [3, 7, 10, 16])
    _, other = stratified_split(np.arange(20) % 2, 4, seed=8)
    assert out.tolist() != other.tolist()


def test_importing_the_package_loads_no_tensorflow_and_no_scikit_learn():
    code = (
        "import sys, kdtflite.data, kdtflite.evaluation\n"
        "from kdtflite.data import load, Split\n"
        "heavy = ('tensorflow', 'tf_keras', 'sklearn', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
