"""Measures how long a conversion takes, against TensorFlow Lite's bare converter.

    python benchmarks/conversion_time.py

Three ways make an int8 file of the same model with the same samples: the bare converter in this
process, `kdtflite.convert`, and `kdtflite.convert` without its proof. They are interleaved, in
another order each round, so that a slow second affects all of them. The first file, for which
`kdtflite.convert` starts its process, is timed apart. The figures are medians over the rounds: of
the times, and of each round's ratios, with the 95 % interval of a bootstrap over the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scipy import stats

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "conversion_time.json"
TARGET = 1.3
BARE, WHOLE, UNPROVEN = "bare converter", "convert", "convert without proof"
NETWORKS = {
    "depthwise, 5 K parameters, 28 × 28": ("depthwise", (28, 28, 1), [16, 24, 32, 48]),
    "ResNet-8, 78 K parameters, 32 × 32": ("resnet", (32, 32, 3), None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--samples", type=int, default=100, help="calibration samples")
    parser.add_argument("--network", choices=[name.split(",")[0] for name in NETWORKS])
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.samples < 1:
        parser.error("--rounds start at 2, --samples at 1")
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "rounds": arguments.rounds,
        "samples": arguments.samples,
        "target": TARGET,
        "rows": {},
    }
    for name in NETWORKS:
        if arguments.network in (None, name.split(",")[0]):
            result["rows"][name] = measure(name, arguments.rounds, arguments.samples)
    write_json(arguments.json, result, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(result), overwrite=True)
    print(as_markdown(result), end="")


def measure(name: str, rounds: int, samples: int) -> dict[str, Any]:
    """Returns the seconds of each way, and the ratios to the bare converter."""
    import tensorflow as tf
    import tf_keras as keras

    import kdtflite
    from kdtflite.models.builders import build_model

    module = importlib.import_module("kdtflite.conversion.convert")  # not the function
    architecture, shape, widths = NETWORKS[name]
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).random((samples, *shape), np.float32)
    model = build_model(architecture, input_shape=shape, classes=10, widths=widths)

    def convert_bare() -> bytes:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        converter.representative_dataset = lambda: ([row[None]] for row in x)
        return bytes(converter.convert())

    def convert() -> bytes:
        return kdtflite.convert(model, x, samples=samples, progress=False).content

    def convert_unproven() -> bytes:
        with mock.patch.object(module, "prove_target"):
            return convert()

    ways: dict[str, Callable[[], bytes]] = {
        BARE: convert_bare,
        WHOLE: convert,
        UNPROVEN: convert_unproven,
    }
    first = {way: _time(run) for way, run in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds):
        order = list(ways)[i % 3 :] + list(ways)[: i % 3]
        for way in order:
            seconds[way].append(_time(ways[way]))
        if not (i + 1) % 10:
            say(f"{name}: round {i + 1} of {rounds}")
    return {
        "first_seconds": first,
        "median_seconds": {way: statistics.median(each) for way, each in seconds.items()},
        "seconds": seconds,
        "ratios": {way: _compare(seconds[way], seconds[BARE]) for way in (WHOLE, UNPROVEN)},
    }


def _time(run: Callable[[], bytes]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _compare(own: list[float], bare: list[float]) -> dict[str, float]:
    """Returns the median of the rounds' ratios, with its interval."""
    ratios = np.asarray(own) / np.asarray(bare)
    interval = stats.bootstrap(
        (ratios,), np.median, method="percentile", random_state=0
    ).confidence_interval
    return {"median": float(np.median(ratios)), "low": interval.low, "high": interval.high}


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the result as a table."""
    machine = result["machine"]
    lines = [
        "# Time of a conversion",
        "",
        f"`python benchmarks/conversion_time.py`, {result['rounds']} interleaved rounds, "
        f"{result['samples']} calibration samples, on {machine['cpu']}, {machine['cores']} cores.",
        f"From the second file on; medians. Target: at most {TARGET} × the bare converter.",
        "",
        "| network | bare converter | `convert` | ratio | without its proof | ratio | first file |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        times, ratios = row["median_seconds"], row["ratios"]
        shown = {
            way: f"{each['median']:.2f} ({each['low']:.2f} to {each['high']:.2f})"
            for way, each in ratios.items()
        }
        cells = [name, f"{times[BARE]:.2f} s", f"{times[WHOLE]:.2f} s", shown[WHOLE]]
        cells += [f"{times[UNPROVEN]:.2f} s", shown[UNPROVEN]]
        lines.append(f"| {' | '.join(cells)} | {row['first_seconds'][WHOLE]:.2f} s |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
