"""One schema for who writes a report and who reads it."""

import math

import pytest
from report_example import example_report

from kdtflite.errors import DataError
from kdtflite.reporting.schema import read_report, write_report


def test_what_is_written_is_what_was_given():
    report = example_report()
    assert write_report(report) == report
    assert read_report(report).test_samples == 450
    assert read_report(read_report(report)).name == "digits"


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        ((), "tests", 3, "'tests': extra inputs"),
        (("dataset",), "samples", {"test": 450}, "'dataset.samples': extra inputs"),
        (("models", 0), "latency", 0.4, "'models.0.latency': extra inputs"),
        (("models", 0), "accuracy", "high", "'models.0.accuracy'"),
        (("samples", 0, "predictions", "teacher"), "class", None, "teacher.class'"),
        ((), "name", "", "'name'"),
    ],
)
def test_a_key_that_only_one_side_knows_is_an_error(place, key, value, message):
    report = example_report()
    changed = report
    for step in place:
        changed = changed[step]
    changed[key] = value
    with pytest.raises(DataError, match=message):
        read_report(report)
    with pytest.raises(DataError, match=message):
        write_report(report)


def test_numbers_that_could_not_be_measured_stay():
    report = example_report()
    report["models"][0]["accuracy"] = None
    report["models"][1]["log_loss"] = math.nan
    written = write_report(report)
    assert written["models"][0]["accuracy"] is None
    assert math.isnan(written["models"][1]["log_loss"])
