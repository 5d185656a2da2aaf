"""`kdtflite run` of a tiny recipe, to its end."""

from __future__ import annotations

import json
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "tiny.yaml"


def test_run_prints_the_table_and_goes_on_where_it_stopped(invoke, tmp_path):
    folder = tmp_path / "run"
    first = invoke("run", RECIPE, "--output", folder, "--seed", 3)
    assert first.exit_code == 0, first.stderr
    assert "★ the file to ship" in first.stdout
    assert f"File: {folder / 'student.tflite'}\n" in first.stdout
    assert f"Report: {folder / 'report.html'}\n" in first.stdout
    assert (folder / "report.html").is_file()
    written = (folder / "student.tflite").stat().st_mtime_ns
    again = invoke("run", RECIPE, "--output", folder, "--seed", 3)
    assert again.exit_code == 0, again.stderr
    assert again.stdout == first.stdout
    assert "is already finished" in again.stderr
    assert (folder / "student.tflite").stat().st_mtime_ns == written
    as_json = invoke("run", RECIPE, "--output", folder, "--seed", 3, "--json")
    assert json.loads(as_json.stdout) == json.loads((folder / "report.json").read_text())
    other = invoke("run", RECIPE, "--output", folder, "--seed", 4)
    assert other.exit_code == 2
    assert "holds a run of another recipe" in other.stderr
