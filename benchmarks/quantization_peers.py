"""Compares integer files of one float model: post-training quantization and training.

    python benchmarks/quantization_peers.py --data shared/data         # resumes where it stopped
    python benchmarks/quantization_peers.py --rows mnist fashion_mnist

There is one float model per data set and seed. From its weights start TensorFlow Lite's and
litert-quantizer's post-training quantization, TFMOT's quantization-aware training, and kdtflite's
of both kinds. The three trainings take the same steps. "distilled" means that the float model
itself is the teacher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.data.augment import Augmentation
from kdtflite.data.batches import steps_per_epoch, training_batches
from kdtflite.errors import NotFullyIntegerError
from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_atomically, write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "quantization_peers.json"
BATCH = 128
CALIBRATION = 300  # samples


@dataclass(frozen=True)
class Setting:
    """How the models of a data set are made.

    Attributes:
        file: The data set's file in the folder `--data`.
        architecture: A name of `kdtflite.models.build_model`.
        epochs: Epochs of the float model.
        qat_epochs: Epochs of each quantization-aware training.
        widths: Widths of the architecture; None for its defaults.
        augmentation: Augmentation in all trainings.
    """

    file: str
    architecture: str
    epochs: int
    qat_epochs: int
    widths: list[int] | None = None
    augmentation: Augmentation | None = None


_SMALL = [16, 24, 32, 48]
ROWS = {
    "mnist": Setting("mnist.npz", "depthwise", 8, 2, _SMALL),
    "fashion_mnist": Setting("fashion_mnist.npz", "depthwise", 8, 2, _SMALL),
    "cifar10": Setting(
        "cifar10_jpeg.npz", "resnet", 40, 4, augmentation=Augmentation(shift=4, flip=True)
    ),
}
METHODS = (
    "float",
    "TFLite PTQ",
    "litert-quantizer PTQ",
    "TFMOT QAT",
    "kdtflite PTQ",
    "kdtflite QAT",
    "kdtflite distilled QAT",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the data sets' files")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kdtflite_peers")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    for seed in range(1, arguments.seeds + 1):
        for row in arguments.rows:
            for method in METHODS:
                path = arguments.work / row / f"{seed}" / f"{method.replace(' ', '_')}.json"
                if path.is_file():
                    continue
                result = Row(arguments.data, arguments.work, row, seed).run(method)
                write_json(path, result, overwrite=True)
                say(f"{row}, seed {seed}, {method}: {result}")
                write_table(arguments.work, arguments.json)
    write_table(arguments.work, arguments.json)
    print(arguments.json.with_suffix(".md").read_text(), end="")


class Row:
    """One data set, one seed."""

    def __init__(self, data: Path | None, work: Path, name: str, seed: int) -> None:
        import tf_keras as keras

        import kdtflite

        self.setting = ROWS[name]
        path = "auto" if data is None else data / self.setting.file
        self.dataset = kdtflite.data.load(name, path=path, seed=0)
        self.seed = seed
        self.folder = work / name / f"{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        chosen = random.permutation(len(self.dataset.train))[:CALIBRATION]
        self.calibration = self.dataset.train.x[np.sort(chosen)]
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)

    def run(self, method: str) -> dict[str, Any]:
        """Makes and measures one file."""
        started = time.monotonic()
        made: dict[str, Callable[[], dict[str, Any]]] = {
            "float": self.convert_float,
            "TFLite PTQ": self.convert_ptq,
            "litert-quantizer PTQ": self.quantize_with_litert,
            "TFMOT QAT": self.train_with_tfmot,
            "kdtflite PTQ": self.quantize_post_training,
            "kdtflite QAT": lambda: self.train_aware(distilled=False),
            "kdtflite distilled QAT": lambda: self.train_aware(distilled=True),
        }
        result = made[method]()
        return {**result, "minutes": round((time.monotonic() - started) / 60, 2)}

    def convert_float(self) -> dict[str, Any]:
        """Converts the float model to a float file."""
        import kdtflite

        return self.measure(kdtflite.convert(self.load_model(), target="float32", progress=False))

    def load_model(self) -> Any:
        """Returns the float model, trained on hard labels; loads it if it is in the work folder."""
        import tf_keras as keras

        import kdtflite
        from kdtflite.models import build_model

        path = self.folder / "float.keras"
        if path.is_file():
            return kdtflite.load_model(path)
        model = build_model(
            self.setting.architecture,
            input_shape=self.dataset.sample_shape,
            classes=self.dataset.classes,
            widths=self.setting.widths,
        )
        backup = keras.callbacks.BackupAndRestore(str(self.folder / "backup"))
        self.compile(model, 0.004, self.setting.epochs)
        self.fit(model, self.setting.epochs, callbacks=[backup], verbose=2)
        with write_atomically(path) as file:
            model.save(file)
        return model

    def compile(self, model: Any, rate: float, epochs: int) -> None:
        """Compiles with Adam, cosine decay and cross-entropy on logits."""
        import tf_keras as keras

        steps = epochs * -(-len(self.dataset.train) // BATCH)
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
        return model

    def fit(self, model: Any, epochs: int, *, verbose: int = 0, **options: Any) -> None:
        """Trains on the training split, augmented if the setting says so."""
        train, augmentation = self.dataset.train, self.setting.augmentation
        if augmentation is None:
            data: dict[str, Any] = {"x": train.x, "y": train.y, "batch_size": BATCH}
        else:
            batches = training_batches(
                train, batch_size=BATCH, epochs=epochs, seed=self.seed, augmentation=augmentation
            )
            data = {"x": batches, "steps_per_epoch": steps_per_epoch(train, BATCH)}
        model.fit(**data, epochs=epochs, verbose=verbose, **options)

    def convert_ptq(self) -> dict[str, Any]:
        """Applies the converter's own post-training quantization."""
        import kdtflite

        return self.measure(kdtflite.convert(self.load_model(), self.calibration, progress=False))

    def quantize_with_litert(self) -> dict[str, Any]:
        """Applies litert-quantizer's static int8 recipe to the float file."""
        try:
            from litert_quantizer import quantizer, recipe
        except ImportError:
            return {"error": "litert-quantizer is not installed"}
        import kdtflite
        from kdtflite.lite.model import LiteModel

        lite = kdtflite.convert(self.load_model(), target="float32", progress=False)
        path = self.folder / "float.tflite"
        lite.save(path, overwrite=True)
        name = lite.inputs[0].name
        made = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        data = {"serving_default": [{name: x[None]} for x in self.calibration]}
        content = bytes(made.quantize(made.calibrate(data)).quantized_model)
        return self.measure(LiteModel(content))

    def train_with_tfmot(self) -> dict[str, Any]:
        """Trains with TFMOT's own wrapper."""
        import kdtflite
        from kdtflite.runtime import import_tfmot

        aware = import_tfmot().quantization.keras.quantize_model(self.load_model())
        test = self.dataset.test
        self.compile(aware, 0.0005, self.setting.qat_epochs)
        first = aware.evaluate(test.x, test.y, batch_size=500, verbose=0)[1]
        self.fit(aware, self.setting.qat_epochs)
        try:
            lite = kdtflite.convert(aware, self.calibration, progress=False)
        except NotFullyIntegerError as error:
            return {"error": str(error)[:200], "before training": round(first, 4)}
        return {**self.measure(lite), "before training": round(first, 4)}

    def quantize_post_training(self) -> dict[str, Any]:
        """Chooses the calibration with the best accuracy on the validation split, then converts."""
        import kdtflite
        from kdtflite.quantization.calibration import CALIBRATIONS

        validation = self.dataset.validation
        found = []
        for name in CALIBRATIONS:
            aware = kdtflite.quantize_aware(self.load_model(), self.calibration, calibration=name)
            logits = aware.predict(validation.x, batch_size=500, verbose=0)
            accuracy = float((logits.argmax(axis=1) == validation.y).mean())
            found.append((accuracy, name, aware))
        _, name, aware = max(found, key=lambda entry: entry[0])
        lite = kdtflite.convert(aware, self.calibration, progress=False)
        return {**self.measure(lite), "calibration": name}

    def train_aware(self, *, distilled: bool) -> dict[str, Any]:
        """Trains quantization-aware, on hard labels alone or with the float model as teacher."""
        import kdtflite

        model = self.load_model()
        aware = kdtflite.quantize_aware(model, self.calibration)
        test = self.dataset.test
        options = {"losses": [kdtflite.losses.SoftTargets(temperature=1.0)]} if distilled else {}
        trained: Any = aware
        if distilled:
            trained = kdtflite.Distiller(aware, model, hard_label_weight=0.5, **options)
        self.compile(trained, 0.0005, self.setting.qat_epochs)
        logits = aware.predict(test.x, batch_size=500, verbose=0)
        first = float((logits.argmax(axis=1) == test.y).mean())
        self.fit(trained, self.setting.qat_epochs)
        lite = kdtflite.convert(aware, self.calibration, progress=False)
        return {**self.measure(lite), "before training": round(first, 4)}

    def measure(self, lite: Any) -> dict[str, Any]:
        """Evaluates a file on the test split and times it."""
        import kdtflite

        test = self.dataset.test
        accuracy = kdtflite.evaluate(lite, (test.x, test.y), progress=False).accuracy
        speed = kdtflite.benchmark(lite, threads=[1], progress=False)
        return {
            "accuracy": round(accuracy, 4),
            "bytes": len(lite.content),
            "p50_ms": round(speed.latencies[0].p50, 4),
        }


def write_table(work: Path, path: Path) -> None:
    """Writes the table of the results so far."""
    rows: dict[str, Any] = {}
    for row in ROWS:
        for method in METHODS:
            name = f"{method.replace(' ', '_')}.json"
            files = sorted((work / row).glob(f"*/{name}"))
            if files:
                rows.setdefault(row, {})[method] = [json.loads(file.read_text()) for file in files]
    result = {"machine": describe_machine(), "rows": rows}
    write_json(path, result, overwrite=True)
    write_text(path.with_suffix(".md"), as_markdown(result), overwrite=True)


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the results as one table per data set."""
    machine = result["machine"]
    lines = ["# Quantization compared with its peers", ""]
    lines.append(
        f"`python benchmarks/quantization_peers.py`, on {machine['cpu']}, "
        f"{machine['cores']} cores, LiteRT {machine['litert']}. Accuracy is that of"
    )
    lines.append("the file, in percent, mean (and standard deviation) over the seeds. The three")
    lines.append("trainings take the same steps from the same float weights. before training: the")
    lines.append("accuracy right after wrapping.")
    for row, methods in result["rows"].items():
        made = ROWS[row]
        augmented = ", with shifts and flips" if made.augmentation else ""
        trained = f"{made.epochs} epochs, then {made.qat_epochs}{augmented}"
        lines += ["", f"## {row}, {made.architecture}: {trained}", ""]
        lines.append("| | accuracy | before training | bytes | p50 | minutes | seeds |")
        lines.append("|---|---|---|---|---|---|---|")
        lines += [format_line(method, runs) for method, runs in methods.items()]
    return "\n".join(lines) + "\n"


def format_line(method: str, runs: list[dict[str, Any]]) -> str:
    done = [run for run in runs if "accuracy" in run]
    if not done:
        return f"| {method} | {runs[0]['error'][:60]} | | | | | {len(runs)} |"

    def mean(key: str) -> float:
        return statistics.mean(run[key] for run in done)

    values = [100 * run["accuracy"] for run in done]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    first = f"{100 * mean('before training'):.2f}" if "before training" in done[0] else ""
    cells = [method, f"{statistics.mean(values):.2f}{spread}", first, f"{mean('bytes'):,.0f}"]
    cells += [f"{mean('p50_ms'):.4f} ms", f"{mean('minutes'):.1f}", str(len(done))]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
