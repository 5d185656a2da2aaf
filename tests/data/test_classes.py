"""Classes of data and outputs of a model are matched by name or number, never by position."""

import numpy as np
import pytest

from kdtflite.data.classes import apply_matching, match_classes
from kdtflite.errors import DataError

DIGITS = [str(digit) for digit in range(10)]
WORDS = ["zero", "one", "two", "three"]


def match(names, labels, outputs, *, numbered=False):
    return match_classes(
        names, labels, outputs, source="photos", model="m.tflite", numbered=numbered
    ).tolist()


@pytest.mark.parametrize(
    ("names", "labels", "outputs", "places"),
    [
        (["2", "5", "9"], DIGITS, 10, [2, 5, 9]),
        (["9", "0"], DIGITS, 10, [9, 0]),
        (["dog", "cat"], ["cat", "cow", "dog"], 3, [2, 0]),
        # By name where both have names, though both are numbers: class "1" is output 0.
        (["1", "10"], [str(number) for number in range(1, 11)], 10, [0, 9]),
        (["07", "3"], DIGITS, 10, [7, 3]),
        # What file systems and people write differently; a composed and a decomposed "ä".
        (["Big Cat", "ka\u0308fer"], ["k\u00e4fer", "big_cat"], 2, [1, 0]),
        # By number where folders are numbers and the model has no such names, or none at all.
        (["0", "2"], ["cat", "cow", "dog"], 3, [0, 2]),
        (["3", "4"], [], 10, [3, 4]),
    ],
)
def test_classes_go_by_name_and_else_by_number(names, labels, outputs, places):
    assert match(names, labels, outputs) == places


@pytest.mark.parametrize(
    ("names", "labels", "outputs", "message"),
    [
        (WORDS, DIGITS, 10, "Received: 'zero', 'one', 'two', 'three', and m.tflite has no such"),
        (["cat", "cow"], ["cat", "dog"], 2, "Received: 'cow', and"),
        # One-based numbers: 10 is no output.
        ([str(n) for n in range(1, 11)], [], 10, "numbers from 0 to 9"),
        (WORDS, [], 4, "no labels. Pass --labels FILE"),
        (["cat", "Cat"], ["cat", "dog"], 2, "does not tell them apart"),
        (["crane"], ["crane", "owl", "crane"], 3, "does not tell them apart"),
        (["cat", "dog"], ["cat", "dog"], 10, "Expected 10 labels in m.tflite"),
    ],
)
def test_what_cannot_be_matched_is_refused(names, labels, outputs, message):
    with pytest.raises(DataError, match=message):
        match(names, labels, outputs)


def test_data_that_number_their_classes_keep_the_numbers_if_no_names_say_otherwise():
    assert match(WORDS, [], 4, numbered=True) == [0, 1, 2, 3]
    assert match(["x", "y", "x"], ["x", "y", "x"], 3, numbered=True) == [0, 1, 2]
    assert match(["b", "a"], ["a", "b"], 2, numbered=True) == [1, 0]
    with pytest.raises(DataError, match="cannot be matched with the 10 outputs"):
        match(WORDS, [], 10, numbered=True)


def test_a_match_by_name_is_said_with_the_classes_that_have_no_samples(capfd):
    match(["dog"], ["cat", "cow", "dog"], 3)
    said = capfd.readouterr().err.replace("\n", " ")
    assert "matched by name with the labels of m.tflite. No samples of: 'cat', 'cow'." in said


def test_labels_without_a_name_are_refused():
    y = np.array([0, 1, 2, 1])
    places = np.array([5, 3, 0])
    assert apply_matching(y, places, source="a.npz").tolist() == [5, 3, 0, 3]
    with pytest.raises(DataError, match=r"Received: 2 at sample 2, and 1 such labels"):
        apply_matching(y, places[:2], source="a.npz")
    with pytest.raises(DataError, match="Received: -1 at sample 0"):
        apply_matching(y - 1, places, source="a.npz")
