"""Measures each part of post-training quantization: calibration, equalization, biases, int16.

    python benchmarks/post_training.py --data shared/data

A small convolutional net is trained on Fashion-MNIST in float and then quantized in each way, once
as it is and once with uneven channels. For these, channels between layers are rescaled exactly, as
in networks whose batch normalization has uneven factors; no float output changes. The error is the
mean squared difference of the file's outputs on the test set from the float file's, divided by the
mean square of the latter.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "post_training.json"
SAMPLES = 300
SPREAD = 1.5  # standard deviation of the logarithms of the channels' factors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with fashion_mnist.npz")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    import kdtflite

    path = "auto" if arguments.data is None else arguments.data / "fashion_mnist.npz"
    dataset = kdtflite.data.load("fashion_mnist", path=path, seed=0)
    result: dict[str, Any] = {"machine": describe_machine(), "epochs": arguments.epochs}
    result["runs"] = []
    for seed in range(1, arguments.seeds + 1):
        model = train(dataset, seed, arguments.epochs)
        for channels in ("as trained", "uneven"):
            if channels == "uneven":
                model = make_uneven(model, seed)
            for method, made in list_methods(model, dataset, seed).items():
                run = {"seed": seed, "channels": channels, "method": method}
                run |= measure(made(), model, dataset)
                say(str(run))
                result["runs"].append(run)
                write_json(arguments.json, result, overwrite=True)
                text = as_markdown(result)
                write_text(arguments.json.with_suffix(".md"), text, overwrite=True)
    print(as_markdown(result), end="")


def train(dataset: Any, seed: int, epochs: int) -> Any:
    """Trains the float model, which ends in logits."""
    import tf_keras as keras

    from kdtflite.models import build_model

    keras.utils.set_random_seed(seed)
    model = build_model(
        "depthwise",
        input_shape=dataset.sample_shape,
        classes=dataset.classes,
        widths=[16, 24, 32, 48],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.004), loss)
    model.fit(dataset.train.x, dataset.train.y, batch_size=128, epochs=epochs, verbose=0)
    return model


def make_uneven(model: Any, seed: int) -> Any:
    """Returns an equivalent model with each channel between two layers scaled at random."""
    import tf_keras as keras

    from kdtflite.quantization.layer_pairs import find_pairs

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    random = np.random.default_rng(seed)
    for pair in find_pairs(copy)[0]:
        norm, second = pair.first_norm, pair.second
        factor = np.exp(random.normal(size=norm.beta.shape) * SPREAD).astype(np.float32)
        norm.gamma.assign(norm.gamma * factor)
        norm.beta.assign(norm.beta * factor)
        depthwise = isinstance(second, keras.layers.DepthwiseConv2D)
        kernel = second.depthwise_kernel if depthwise else second.kernel
        kernel.assign(kernel / factor[:, None])
    return copy


def list_methods(model: Any, dataset: Any, seed: int) -> dict[str, Callable[[], Any]]:
    """Returns a function per method that makes its file."""
    import kdtflite
    from kdtflite.quantization import choose_calibration

    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(dataset.train))[:SAMPLES])
    x = dataset.train.x[chosen]
    validation = (dataset.validation.x[:1000], dataset.validation.y[:1000])

    def quantize(**options: Any) -> Any:
        student = kdtflite.quantize_post_training(model, x, **options)
        return kdtflite.convert(student, x, progress=False)

    float_file = kdtflite.convert(model, target="float32", progress=False)

    def mix(keep: int, wide: str = "int16") -> Any:
        return kdtflite.mixed_precision(float_file, x, keep=keep, wide=wide).file

    def find_best(**options: Any) -> Any:
        choice = choose_calibration(model, x, validation[0], **options)
        return kdtflite.convert(choice.student, x, progress=False)

    return {
        "float": lambda: float_file,
        "the converter's own": lambda: kdtflite.convert(model, x, progress=False),
        "min-max": quantize,
        "min-max, bias correction": lambda: quantize(correct_biases=True),
        "equalization": lambda: quantize(equalize=True),
        "equalization, bias correction": lambda: quantize(equalize=True, correct_biases=True),
        "best calibration": find_best,
        "best calibration, equalization, bias correction": lambda: find_best(
            equalize=True, correct_biases=True
        ),
        "mixed: 3 activations in int16": lambda: mix(3),
        "mixed: all that help in int16": lambda: mix(99),
        "mixed: 3 activations in float": lambda: mix(3, "float32"),
    }


def measure(file: Any, model: Any, dataset: Any) -> dict[str, Any]:
    """Evaluates a file on the test split and times it."""
    import kdtflite
    from kdtflite.quantization.output_error import squared_error

    test = dataset.test
    outputs = file.predict(test.x)
    wanted = model.predict(test.x, batch_size=500, verbose=0)
    speed = kdtflite.benchmark(file, threads=[1], progress=False)
    return {
        "accuracy": float((outputs.argmax(axis=1) == test.y).mean()),
        "error": squared_error([wanted], [outputs]),
        "bytes": len(file.content),
        "p50_ms": round(speed.latencies[0].p50, 4),
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Returns one table for the channels as trained and one for uneven ones."""
    runs = result["runs"]
    lines = ["# Post-training quantization, part by part", ""]
    machine = result["machine"]
    lines.append(
        f"`python benchmarks/post_training.py`, on {machine['cpu']}, {machine['cores']} cores, "
        f"LiteRT {machine['litert']}."
    )
    lines.append("Fashion-MNIST, depthwise net of widths 16, 24, 32, 48, trained in float for")
    lines.append(f"{result['epochs']} epochs; {SAMPLES} samples calibrate. Accuracy in percent and")
    lines.append(
        "error (mean squared difference of the file's outputs from the float ones, relative"
    )
    lines.append("to their mean square) on the test set, means over the seeds.")
    for channels in dict.fromkeys(run["channels"] for run in runs):
        lines += ["", f"## Channels {channels}", ""]
        lines += ["| | accuracy | error | bytes | p50 | seeds |", "|---|---|---|---|---|---|"]
        here = [run for run in runs if run["channels"] == channels]
        for method in dict.fromkeys(run["method"] for run in here):
            same = [run for run in here if run["method"] == method]
            accuracy, error, size, p50 = (
                statistics.mean(run[key] for run in same)
                for key in ("accuracy", "error", "bytes", "p50_ms")
            )
            lines.append(
                f"| {method} | {100 * accuracy:.2f} | {error:.2g} | {size:,.0f} | {p50:.4f} ms "
                f"| {len(same)} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
