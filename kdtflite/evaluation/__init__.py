"""Measuring the file: accuracy, latency, footprint, and parity with the Keras model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtflite.evaluation.accuracy import evaluate
    from kdtflite.evaluation.arena import arena_bytes
    from kdtflite.evaluation.footprint import macs, parameters
    from kdtflite.evaluation.latency import Benchmark, Latency, benchmark
    from kdtflite.evaluation.parity import Parity, compare
    from kdtflite.evaluation.result import ClassScores, Evaluation

__all__ = [
    "Benchmark",
    "ClassScores",
    "Evaluation",
    "Latency",
    "Parity",
    "arena_bytes",
    "benchmark",
    "compare",
    "evaluate",
    "macs",
    "parameters",
]

_HOMES = {
    "Benchmark": "latency",
    "ClassScores": "result",
    "Evaluation": "result",
    "Latency": "latency",
    "Parity": "parity",
    "arena_bytes": "arena",
    "benchmark": "latency",
    "compare": "parity",
    "evaluate": "accuracy",
    "macs": "footprint",
    "parameters": "footprint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
