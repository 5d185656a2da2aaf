"""Measures how many images per second `LiteModel.predict` evaluates, against a bare loop.

    python benchmarks/evaluation_throughput.py --model resnet.tflite

Three ways run over the same images: one worker, one worker per core, and the usual loop
(set_tensor, invoke, get_tensor; one thread, the same kernels). They are interleaved, so that a slow
minute affects all of them. The figures are medians over the rounds: of the speeds, and of each
round's ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.evaluation.machine import count_usable_cores, describe_machine
from kdtflite.files import write_json, write_text
from kdtflite.lite.model import LiteModel
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "evaluation_throughput.json"
TARGET_WORKERS = 1.7
TARGET_LOOP = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an image classifier; default: a new ResNet-8")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=count_usable_cores())
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    if arguments.images < 1 or arguments.repeats < 1 or arguments.workers < 2:
        parser.error("--images and --repeats start at 1, --workers at 2")
    model = LiteModel.load(arguments.model) if arguments.model else convert_resnet8()
    result = measure(model, arguments.images, arguments.repeats, arguments.workers)
    result["model"] = arguments.model.name if arguments.model else "ResNet-8, random weights, int8"
    write_json(arguments.json, result, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(result), overwrite=True)
    print(as_markdown(result), end="")


def measure(model: LiteModel, images: int, repeats: int, workers: int) -> dict[str, Any]:
    """Returns images per second and ratios; exits if the ways differ in a single output."""
    spec = model.inputs[0]
    random = np.random.default_rng(0)
    # Codes, as in an evaluation of cached data: quantizing is not part of the comparison.
    info = np.iinfo(spec.dtype) if spec.scale is not None else None
    shape = (images, *spec.shape[1:])
    x: np.ndarray = (
        random.random(shape, np.float32)
        if info is None
        else random.integers(info.min, info.max, shape, spec.dtype, endpoint=True)
    )
    ways: dict[str, Callable[[], np.ndarray]] = {
        "bare loop": lambda: run_bare_loop(model, x),
        "1 worker": lambda: model.predict(x, dequantize=False, workers=1),
        f"{workers} workers": lambda: model.predict(x, dequantize=False, workers=workers),
    }
    bare, one, many = ways
    expected = ways[bare]()
    for name, way in ways.items():
        if not np.array_equal(way(), expected):
            raise SystemExit(
                f"{name} gives other outputs than the bare loop, so the speeds are not comparable."
            )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        # A different way goes first each time.
        order = list(ways)[repeat % 3 :] + list(ways)[: repeat % 3]
        for name in order:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
        say(f"round {repeat + 1} of {repeats}")
    return {
        "images": images,
        "repeats": repeats,
        "workers": workers,
        "images_per_second": {n: images / statistics.median(s) for n, s in seconds.items()},
        "seconds": seconds,
        "workers_over_one": _compute_ratio(seconds[one], seconds[many]),
        "one_over_bare_loop": _compute_ratio(seconds[bare], seconds[one]),
        "targets": {"workers_over_one": TARGET_WORKERS, "one_over_bare_loop": TARGET_LOOP},
        "machine": describe_machine(),
    }


def run_bare_loop(model: LiteModel, x: np.ndarray) -> np.ndarray:
    """Runs the file image by image, as in hand-written code."""
    interpreter = model.interpreter(threads=1, xnnpack=True)
    given, taken = model.inputs[0].index, model.outputs[0].index
    outputs = np.empty((len(x), *model.outputs[0].shape[1:]), model.outputs[0].dtype)
    for number in range(len(x)):
        interpreter.set_tensor(given, x[number : number + 1])
        interpreter.invoke()
        outputs[number] = interpreter.get_tensor(taken)[0]
    return outputs


def convert_resnet8() -> LiteModel:
    """Builds MLPerf Tiny's ResNet-8 with random weights and converts it to int8."""
    import tf_keras as keras

    import kdtflite

    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(image)))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(filters, 3, stride, padding="same")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same")(y))
        if stride > 1:
            x = layers.Conv2D(filters, 1, stride, padding="same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    logits = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    data = np.random.default_rng(0).random((64, 32, 32, 3), np.float32)
    return kdtflite.convert(keras.Model(image, logits), representative_data=data, progress=False)


def as_markdown(result: dict[str, Any]) -> str:
    machine = result["machine"]
    rows = [f"| {n} | {v:,.0f} |" for n, v in result["images_per_second"].items()]
    return "\n".join(
        [
            "# Evaluation throughput",
            "",
            f"{result['model']}, {result['images']:,} images, median of {result['repeats']} "
            f"interleaved rounds; {machine['cpu']}, {machine['cores']} cores, "
            f"LiteRT {machine['litert']}, XNNPACK kernels.",
            "",
            "| way | images per second |",
            "| --- | ---: |",
            *rows,
            "",
            f"{result['workers']} workers over one: {result['workers_over_one']:.2f}x "
            f"(target at least {TARGET_WORKERS}x with two cores). "
            f"One worker over the bare loop: {result['one_over_bare_loop']:.2f}x "
            f"(target at least {TARGET_LOOP}x).",
            "",
        ]
    )


def _compute_ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


if __name__ == "__main__":
    main()
