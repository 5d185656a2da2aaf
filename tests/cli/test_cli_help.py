"""What can be asked without TensorFlow is answered without it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

COMMANDS = (
    *("run", "convert", "pack", "evaluate", "benchmark", "inspect", "layers", "golden", "recipes"),
)
# Not pydantic: typer imports it for itself.
HEAVY = ("tensorflow", "tf_keras", "keras", "sklearn", "matplotlib", "numpy", "PIL", "yaml")
SCRIPT = f"""
import json, sys
from typer.testing import CliRunner
from kdtflite.cli import app
pages = {{}}
for arguments in [["--help"], ["--version"], *([c, "--help"] for c in {COMMANDS})]:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output)
    pages[arguments[0]] = result.output
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps({{"pages": pages, "heavy": heavy}}))
"""


@pytest.fixture(scope="module")
def answered() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_no_help_page_imports_anything_heavy(answered):
    assert answered["heavy"] == []


@pytest.mark.parametrize("command", ["--help", *COMMANDS])
def test_every_help_page_shows_an_example(answered, command):
    example = "kdtflite run digits" if command == "--help" else f"kdtflite {command} "
    assert f"Example: {example}" in answered["pages"][command]


def test_help_lists_every_command(answered):
    for command in COMMANDS:
        assert f"│ {command} " in answered["pages"]["--help"]


def test_help_of_run_says_that_it_is_resumable(answered):
    assert "Resumable" in answered["pages"]["run"]


def test_version_is_the_packages(answered):
    from importlib.metadata import version

    assert answered["pages"]["--version"].strip() == f"kdtflite {version('kdtflite')}"


def test_the_module_runs_the_command_line_only_as_a_program():
    importlib.import_module("kdtflite.__main__")  # which would exit
    done = subprocess.run(
        [sys.executable, "-m", "kdtflite", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kdtflite ")
