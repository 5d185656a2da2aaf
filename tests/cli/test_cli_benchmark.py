"""`kdtflite benchmark`: what it says, not how fast this machine is."""

from __future__ import annotations

import json


def test_benchmark_times_every_number_of_threads(invoke, workshop):
    result = invoke(
        "benchmark", workshop / "model.tflite", "--threads", 1, "--threads", 2, "--json"
    )
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert [latency["threads"] for latency in printed["latencies"]] == [1, 2]
    for latency in printed["latencies"]:
        assert latency["invokes"] == 200
        assert latency["min_ms"] <= latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
        assert latency["delegate"] == "XNNPACK"
    assert printed["file_bytes"] == (workshop / "model.tflite").stat().st_size


def test_benchmark_without_the_delegate_says_so(invoke, workshop):
    result = invoke("benchmark", workshop / "model.tflite", "--threads", 1, "--no-xnnpack")
    assert result.exit_code == 0, result.stderr
    assert "p99 ms" in result.stdout
    assert "none" in result.stdout
    assert "XNNPACK" not in result.stdout


def test_too_few_invokes_are_refused(invoke, workshop):
    result = invoke("benchmark", workshop / "model.tflite", "--invokes", 50)
    assert result.exit_code == 2
    assert "Error: Expected at least 200 timed invokes" in result.stderr
