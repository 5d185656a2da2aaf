"""The choice of the file to ship, from what each file has right."""

import json

import numpy as np
import pytest

from kdtflite.pipeline.selection import MeasuredFile, select_file

LABELS = np.arange(100) % 10


def make_file(key, wrong, size=1000, macs=500):
    """Returns a file that classifies the samples of the given numbers wrongly."""
    right = np.ones(len(LABELS), bool)
    right[list(wrong)] = False
    return MeasuredFile(key, f"The file {key}", right, size, macs)


def choose(*files, labels=LABELS):
    return select_file(files, labels)


def test_the_most_accurate_file_is_chosen_beyond_the_standard_error():
    # Five samples against none: difference 0.05, standard error √(0.05 · 0.95 / 99) = 0.0219.
    found = choose(make_file("small", range(5), size=500), make_file("good", []))
    assert (found.chosen, found.recommended) == ("good", True)
    assert found.why == (
        "The file good is the most accurate file on 100 validation samples (100.00\u00a0%), beyond "
        "the standard error."
    )
    assert [difference.difference for _, difference in found.files] == [-0.05, 0]


def test_within_the_paired_standard_error_the_smaller_file_is_chosen():
    # One sample apart is exactly one standard error: √(0.01 · 0.99 / 99) = 0.01.
    found = choose(make_file("good", []), make_file("small", [3], size=800))
    assert found.chosen == "small"
    assert "is as accurate as The file good, within the standard error" in found.why
    assert "It is the smaller file (800\u00a0B against 1.00\u00a0kB)." in found.why


def test_the_error_is_of_the_pair_not_of_two_accuracies():
    # Both have 10 wrong samples in common. Two more are 0.02 with a paired error of 0.0141; of
    # two accuracies near 0.89 from other samples it would be 0.044, and the smaller file better.
    common = range(10)
    found = choose(make_file("good", common), make_file("small", [*common, 20, 21], size=10))
    assert found.chosen == "good"


def test_one_percent_of_size_is_no_reason_to_lose_accuracy():
    assert choose(make_file("good", [], size=1010), make_file("small", [3])).chosen == "good"
    assert choose(make_file("good", [], size=1011), make_file("small", [3])).chosen == "small"


def test_of_equal_sizes_the_one_with_fewer_operations_is_chosen():
    found = choose(make_file("good", [], macs=501), make_file("fast", [3], macs=500))
    assert found.chosen == "fast"
    assert "It is the file with fewer operations, at the same size." in found.why


def test_of_files_that_are_alike_the_first_is_chosen():
    assert choose(make_file("a", [1]), make_file("b", [2])).chosen == "a"
    assert choose(make_file("b", [2]), make_file("a", [1])).chosen == "b"
    alike = choose(make_file("a", [1], size=1005), make_file("b", [1]))
    assert alike.chosen == "b"  # by five bytes
    assert "Another file is within the standard error of the difference, but not" in alike.why


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_files_does_not_matter_otherwise(order):
    files = [
        make_file("best", [1], size=2000),
        make_file("near", [1, 2], size=900),
        make_file("far", range(20), size=100),
        make_file("nearer", [1], size=1500),
    ]
    assert choose(*files[::order]).chosen == "near"


def test_a_student_no_better_than_the_most_frequent_class_is_not_recommended():
    labels = np.array([0] * 90 + [1] * 10)
    constant = make_file("a", range(90, 100))  # always answers class 0
    found = choose(constant, labels=labels)
    assert (found.chosen, found.recommended, found.majority) == ("a", False, 0.9)
    assert "no better than always answering the most frequent class: 90.00\u00a0% against" in (
        found.why
    )
    # One sample better is within one standard error; four are beyond it.
    assert not choose(make_file("a", range(91, 100)), labels=labels).recommended
    assert choose(make_file("a", range(94, 100)), labels=labels).recommended
    assert not choose(make_file("a", range(80, 100)), labels=labels).recommended


def test_a_single_sample_tells_nothing():
    files = [
        MeasuredFile("good", "Good", np.array([True]), 1000, 5),
        MeasuredFile("small", "Small", np.array([False]), 900, 5),
    ]
    found = select_file(files, np.array([0]))
    assert (found.chosen, found.recommended) == ("small", False)
    assert "and one sample tells nothing" in found.why
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_small_difference_counts_where_samples_are_many():
    samples = 1_000_000
    good, small = np.ones(samples, bool), np.ones(samples, bool)
    small[:1000] = False  # 0.1 %, 32 standard errors
    files = [
        MeasuredFile("small", "Small", small, 10, 5),
        MeasuredFile("good", "Good", good, 20, 5),
    ]
    assert select_file(files, np.arange(samples) % 2).chosen == "good"


def test_the_report_gets_every_file_with_its_interval():
    found = choose(make_file("good", []), make_file("bad", range(5))).to_dict()
    assert [file["key"] for file in found["files"]] == ["good", "bad"]
    behind = found["files"][1]["behind"]
    assert behind["low"] < behind["difference"] == -0.05 < behind["high"] < 0
    assert (found["samples"], found["majority"]) == (100, 0.1)
