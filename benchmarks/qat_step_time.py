"""Measures how long a quantization-aware step takes, against a float step and TFMOT's.

    python benchmarks/qat_step_time.py

Each network is measured as three models: float, wrapped by TFMOT, and wrapped by kdtflite. Their
steps are interleaved in one process, a few of each in turn, so that a slow second affects all of
them. The figures are medians over the rounds: of the times, and of each round's ratios.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "qat_step_time.json"
TARGET = 1.2
NETWORKS = {
    "depthwise, 5 K parameters, 28 × 28": ("depthwise", (28, 28, 1), [16, 24, 32, 48]),
    "ResNet-8, 78 K parameters, 32 × 32": ("resnet", (32, 32, 3), None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4, help="steps per model and round")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", choices=[name.split(",")[0] for name in NETWORKS])
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine(), "batch": arguments.batch, "rows": {}}
    for name in NETWORKS:
        if arguments.network in (None, name.split(",")[0]):
            result["rows"][name] = measure(name, arguments.rounds, arguments.steps, arguments.batch)
    if arguments.network is None:
        write_json(arguments.json, result, overwrite=True)
        write_text(arguments.json.with_suffix(".md"), as_markdown(result), overwrite=True)
    print(as_markdown(result), end="")


def measure(name: str, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Returns the milliseconds per step of each model, and ratios."""
    import tensorflow as tf
    import tf_keras as keras

    import kdtflite
    from kdtflite.models.builders import build_model
    from kdtflite.runtime import import_tfmot

    architecture, shape, widths = NETWORKS[name]
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.random((batch * 16, *shape), np.float32)
    y = random.integers(0, 10, len(x))
    float_model = build_model(architecture, input_shape=shape, classes=10, widths=widths)
    models = {
        "float": float_model,
        "TFMOT": import_tfmot().quantization.keras.quantize_model(float_model),
        "kdtflite": kdtflite.quantize_aware(float_model, x[:256]),
    }
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).cache().repeat()
    run_steps = {}
    for key, model in models.items():
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, batch_size=batch, verbose=0)
        run_steps[key] = functools.partial(model.make_train_function(), iter(batches))
    times: dict[str, list[float]] = {key: [] for key in models}
    for i in range(rounds):
        for key in list(models)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            for _ in range(steps):
                run_steps[key]()
            times[key].append((time.perf_counter() - start) / steps)
        if not (i + 1) % 10:
            say(f"{name}: round {i + 1} of {rounds}")

    def compute_ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    return {
        "parameters": float_model.count_params(),
        "milliseconds": {key: 1000 * statistics.median(times[key]) for key in times},
        "kdtflite / float": compute_ratio("kdtflite", "float"),
        "TFMOT / float": compute_ratio("TFMOT", "float"),
        "kdtflite / TFMOT": compute_ratio("kdtflite", "TFMOT"),
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the result as a table."""
    lines = ["# Time of a quantization-aware step", ""]
    machine = result["machine"]
    lines.append(
        f"`python benchmarks/qat_step_time.py`, batch {result['batch']}, on {machine['cpu']}, "
        f"{machine['cores']} cores."
    )
    lines.append(f"Medians. Target for the small network: kdtflite / float at most {TARGET}.")
    lines += [
        "",
        "| network | float | TFMOT | kdtflite | / float | TFMOT / float | / TFMOT |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in result["rows"].items():
        cells = [f"{row['milliseconds'][key]:.1f} ms" for key in ("float", "TFMOT", "kdtflite")]
        cells += [
            f"{row[key]:.2f}" for key in ("kdtflite / float", "TFMOT / float", "kdtflite / TFMOT")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
