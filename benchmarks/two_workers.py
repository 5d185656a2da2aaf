"""Runs a recipe with one worker and with two on this machine, and compares the accuracies.

    python benchmarks/two_workers.py digits

The two workers are processes on loopback, each with half of every batch. Each run has its own
folder and resumes where it stopped. The result is written to docs/benchmarks/two_workers.json and
.md. The exit code is 1 if an accuracy of the two workers differs by more than half a point from the
single worker's.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text
from kdtflite.runtime import list_versions

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
LARGEST = 0.005


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="name of a recipe, or a .yaml file")
    parser.add_argument("--data", default="auto", help="file or folder of the data set")
    parser.add_argument("--runs", default="runs/two_workers", help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the runs")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        reports = []
        for workers in (1, 2):
            folder = Path(arguments.runs) / f"{workers}-seed{seed}"
            command = [arguments.recipe, "--data", arguments.data, "--seed", str(seed)]
            run([*command, "--output", str(folder)], workers)
            reports.append(json.loads((folder / "report.json").read_text()))
        rows += compare(seed, *reports)
    means = {key: average(rows, key) for key in dict.fromkeys(row["key"] for row in rows)}
    result = {
        "recipe": reports[0]["name"],
        "machine": describe_machine(),
        "versions": list_versions(),
        "rows": rows,
        "means": means,
    }
    write_json(DOCS / "two_workers.json", result, overwrite=True)
    write_text(DOCS / "two_workers.md", as_markdown(result), overwrite=True)
    print(as_markdown(result))
    return 0 if all(abs(mean["difference"]) <= LARGEST for mean in means.values()) else 1


def run(arguments: list[str], workers: int) -> None:
    """Runs the recipe in `workers` processes and waits for all of them."""
    sockets = [socket.socket() for _ in range(workers)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(workers):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "kdtflite", "run", *arguments],
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.DEVNULL,
                # Both print the same.
                stderr=None if index == 0 else subprocess.DEVNULL,
            )
        )
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the run ended with {codes}")


def compare(seed: int, one: dict[str, Any], two: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the accuracy of every model of a seed, with one worker and with two."""
    return [
        {
            "seed": seed,
            "key": model["key"],
            "one": model["accuracy"],
            "two": other["accuracy"],
            "difference": other["accuracy"] - model["accuracy"],
        }
        for model, other in zip(one["models"], two["models"], strict=True)
    ]


def average(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Returns a model's mean accuracies and difference over the seeds."""
    own = [row for row in rows if row["key"] == key]
    return {name: sum(row[name] for row in own) / len(own) for name in ("one", "two", "difference")}


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the result as a table."""
    seeds = list(dict.fromkeys(row["seed"] for row in result["rows"]))
    lines = [
        "# Two workers against one",
        "",
        f"Recipe {result['recipe']}, seeds {', '.join(map(str, seeds))}: test accuracy in %, mean "
        "over the seeds; two processes on loopback, the same global batches. "
        "`python benchmarks/two_workers.py digits` repeats it.",
        "",
        "| model | one worker | two workers | difference, points | per seed |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for key, mean in result["means"].items():
        each = [f"{100 * row['difference']:+.2f}" for row in result["rows"] if row["key"] == key]
        lines.append(
            f"| {key} | {100 * mean['one']:.2f} | {100 * mean['two']:.2f} | "
            f"{100 * mean['difference']:+.2f} | {', '.join(each)} |"
        )
    return "\n".join([*lines, "", "Target: within 0.5 points.", ""])


if __name__ == "__main__":
    sys.exit(main())
