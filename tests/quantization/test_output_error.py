"""The difference between outputs, by hand."""

import numpy as np
import pytest

from kdtflite.errors import DataError
from kdtflite.quantization.output_error import (
    divergence,
    measure_accuracy,
    split_labels,
    squared_error,
)


def test_squared_error_is_a_share_of_the_float_outputs_power():
    # (1 + 0) / 2 of (9 + 16) / 2, and (4) of (4): the mean of 0.04 and 1.
    wanted, given = (
        [np.array([[3.0, 4.0]]), np.array([[2.0]])],
        [
            np.array([[2.0, 4.0]]),
            np.array([[0.0]]),
        ],
    )
    assert squared_error(wanted, given) == pytest.approx(0.52)
    assert squared_error([np.zeros((2, 3))], [np.full((2, 3), 2.0)]) == 4  # no power to share


def test_divergence_of_logits_and_of_probabilities_is_the_same():
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    wanted = 0.25 * np.log(2)  # 0.5 log 2 + 0 - 0.25 log 2
    assert divergence([p], [q]) == pytest.approx(wanted)
    assert divergence([np.log(p) + 7], [np.log(q) - 900]) == pytest.approx(wanted)
    assert divergence([p], [p]) == 0


def test_divergence_is_finite_for_certain_outputs():
    # A probability of 0 counts as 1e-30.
    certain, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert divergence([certain], [other]) == pytest.approx(30 * np.log(10))
    assert divergence([np.array([[1e4, 0.0]])], [np.array([[0.0, 1e4]])]) == pytest.approx(1e4)


def test_accuracy_of_classes_and_of_one_probability():
    labels = np.array([0, 1, 1])
    assert measure_accuracy(labels, [np.array([[2, 1], [0, 3], [5, 4]])]) == pytest.approx(2 / 3)
    assert measure_accuracy(labels, [np.array([[0.2], [0.9], [0.6]])]) == 1


def test_labels_are_taken_from_pairs_and_splits_only():
    x = np.zeros((3, 2))
    assert split_labels(x)[1] is None
    np.testing.assert_array_equal(split_labels((x, [0, 1, 2]))[1], [0, 1, 2])
    for y in ([0, 1], np.zeros(3), np.zeros((3, 1), int)):
        with pytest.raises(DataError, match="one class index per sample"):
            split_labels((x, y))
