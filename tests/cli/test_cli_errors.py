"""Every error is one line on stderr, and an exit code that tells its kind."""

from __future__ import annotations

import signal

import pytest

import kdtflite
from kdtflite.cli.commands import Terminated
from kdtflite.errors import DataError


def _raising(error):
    def run(*args, **kwargs):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            DataError("Expected\n  numbers. Received: words."),
            2,
            "Expected numbers. Received: words.",
        ),
        (
            KeyboardInterrupt(),
            130,
            "Interrupted. The same command resumes after the last finished stage and epoch.",
        ),
        (
            Terminated(signal.SIGTERM),
            143,
            "Terminated. The same command resumes after the last finished stage and epoch.",
        ),
        (
            ZeroDivisionError("by zero"),
            1,
            "kdtflite failed unexpectedly: ZeroDivisionError: by zero. "
            "Run the same command with --debug to see where.",
        ),
        (PermissionError(13, "Permission denied", "runs/x"), 2, "runs/x: Permission denied."),
    ],
)
def test_an_error_is_one_line_without_traceback(invoke, monkeypatch, error, code, line):
    monkeypatch.setattr(kdtflite, "run", _raising(error), raising=False)
    result = invoke("run", "digits")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"Error: {line}\n")


@pytest.mark.parametrize("arguments", [["--debug", "run", "digits"], ["run", "digits", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(invoke, monkeypatch, arguments):
    monkeypatch.setattr(kdtflite, "run", _raising(DataError("No numbers.")), raising=False)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("Error: No numbers.\n")


def test_an_interrupted_conversion_says_that_nothing_was_written(invoke, monkeypatch, workshop):
    monkeypatch.setattr(kdtflite, "convert", _raising(KeyboardInterrupt()), raising=False)
    result = invoke(
        "convert", workshop / "model.keras", "--target", "float32", "-o", workshop / "new.tflite"
    )
    assert result.exit_code == 130
    assert result.stderr == (
        "Error: Interrupted. Nothing was written; run the same command to start again.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["evaluate", "x.tflite"], ["fly"], ["run", "digits", "--sede", "1"]],
)
def test_wrong_usage_exits_with_2(invoke, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
