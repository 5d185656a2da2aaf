"""Measures two small transformers, distilled and quantized inside their attention.

    python benchmarks/quantized_transformers.py --data shared/data      # resumes where it stopped
    python benchmarks/quantized_transformers.py --data shared/data --quick    # a short check

The models are a ViT on Fashion-MNIST and a BERT-like classifier on SST-2. For each there are a
float student trained on the labels, a distilled one, and three integer files of the distilled one:
by the converter's post-training quantization, by kdtflite's, and by kdtflite's quantization-aware
distillation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.errors import NotFullyIntegerError
from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_atomically, write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "quantized_transformers.json"
CALIBRATION = 300  # samples
QUICK = 512  # samples
ROWS = {
    "vision": "ViT on Fashion-MNIST: width 32, 2 blocks, 4 heads, 49 patches",
    "text": "BERT-like on SST-2: width 64, 2 blocks, 4 heads, 32 tokens",
}
METHODS = (
    "float, hard labels",
    "float, distilled",
    "converter PTQ",
    "kdtflite PTQ",
    "kdtflite QAT, distilled",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with fashion_mnist.npz and sst2.npz")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="use few samples and a separate work folder"
    )
    work = Path(tempfile.gettempdir()) / "kdtflite_transformers"
    parser.add_argument("--work", type=Path, default=work, help="folder of the results")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    work, path = arguments.work, arguments.json
    if arguments.quick:
        work = work / "quick"
        path = work / "result.json"
    for name in arguments.rows:
        row = None
        for seed in range(1, arguments.seeds + 1):
            for method in METHODS:
                result = work / name / f"{seed}" / f"{method.replace(' ', '_')}.json"
                if result.is_file():
                    continue
                row = row or Row(arguments.data, work, name, arguments.quick)
                write_json(result, row.run(method, seed), overwrite=True)
                say(f"{name}, seed {seed}, {method}: {result.read_text()}")
                write_table(work, path)
    write_table(work, path)
    print(path.with_suffix(".md").read_text(), end="")


class Row:
    """One task."""

    def __init__(self, data: Path | None, work: Path, name: str, quick: bool) -> None:
        from transformer_cases import CASES

        self.case = shorten(CASES[name](data)) if quick else CASES[name](data)
        self.folder = work / name
        x = self.case.train.x
        chosen = np.random.default_rng(0).permutation(len(x))[:CALIBRATION]
        self.calibration = x[np.sort(chosen)]

    def run(self, method: str, seed: int) -> dict[str, Any]:
        """Makes and measures one model and its file."""
        import tf_keras as keras

        import kdtflite

        keras.backend.clear_session()
        if method != "float, hard labels":
            self.train_teachers()  # not part of this row's time
        started = time.monotonic()
        model = self.train_student(seed, distilled=method != "float, hard labels")
        target = "float32" if method.startswith("float") else "int8"
        result: dict[str, Any] = {}
        if method.startswith("kdtflite"):
            model = kdtflite.quantize_aware(model, self.calibration)
            layers = model.quantization.layers
            result["layers"] = len(layers)
            result["aware"] = sum(layer.how != "calibrated" for layer in layers)
        if method == "kdtflite QAT, distilled":
            self.train(
                model, self.case.qat_rate, self.case.qat_epochs, seed, teacher=self.train_teachers()
            )
        result["minutes"] = round((time.monotonic() - started) / 60, 1)
        return {**result, **self.measure(model, target)}

    def train_student(self, seed: int, *, distilled: bool) -> Any:
        """Returns the float student; loads it if it is in the work folder."""
        student = self.case.student
        teacher = self.train_teachers() if distilled else None
        name = f"{seed}/distilled" if distilled else f"{seed}/hard_labels"
        return self.load_or_train(name, student, seed, teacher)

    def train_teachers(self) -> list[Any]:
        """Returns the teachers; loads them if they are in the work folder."""
        return [self.load_or_train(f"teacher{i}", t, 0) for i, t in enumerate(self.case.teachers)]

    def load_or_train(self, name: str, training: Any, seed: int, teacher: Any = None) -> Any:
        """Returns a trained model; loads its weights if they are in the work folder."""
        import tf_keras as keras

        import kdtflite

        keras.utils.set_random_seed(seed)
        model = training.build()
        # Only weights: Keras 2 saves graphs with TensorFlow operations that it cannot load.
        path = self.folder / f"{name}.weights.h5"
        if path.is_file():
            model.load_weights(path)
            return model
        self.train(model, training.rate, training.epochs, seed, teacher)
        accuracy = kdtflite.evaluate(model, self.case.test, progress=False).accuracy
        write_json(self.folder / f"{name}.json", {"accuracy": accuracy}, overwrite=True)
        with write_atomically(path) as file:
            model.save_weights(file)
        say(f"{self.folder.name}: {name} {accuracy:.4f}")
        return model

    def train(self, model: Any, rate: float, epochs: int, seed: int, teacher: Any = None) -> None:
        """Trains on augmented views with the labels and, if given, a teacher."""
        from distillation_methods import compile_plainly

        import kdtflite
        from kdtflite.data.batches import steps_per_epoch, training_batches

        case = self.case
        soft = [kdtflite.losses.SoftTargets(temperature=case.temperature)]
        distiller = kdtflite.Distiller(
            model,
            teacher if teacher is None or len(teacher) > 1 else teacher[0],
            losses=[] if teacher is None else soft,
            hard_label_weight=1.0 if teacher is None else 0.5,
        )
        steps = steps_per_epoch(case.train, case.batch)
        compile_plainly(distiller, rate, epochs * steps)
        batches = training_batches(
            case.train, batch_size=case.batch, epochs=epochs, seed=seed, augmentation=case.augment
        )
        distiller.fit(batches, steps_per_epoch=steps, epochs=epochs, verbose=0)

    def measure(self, model: Any, target: str) -> dict[str, Any]:
        """Evaluates the model and its file on the test split."""
        import kdtflite

        of_model = kdtflite.evaluate(model, self.case.test, progress=False)
        result = {"model": round(of_model.accuracy, 4), "samples": of_model.samples}
        try:
            lite = kdtflite.convert(model, self.calibration, target, progress=False)
        except NotFullyIntegerError as error:
            return {**result, "proven": False, "error": str(error)}
        of_file = kdtflite.evaluate(lite, self.case.test, progress=False)
        same = float((of_model.predictions == of_file.predictions).mean())
        return {
            **result,
            "file": round(of_file.accuracy, 4),
            "same": round(same, 4),
            "bytes": len(lite.content),
            "proven": target == "int8" or None,  # otherwise convert raises
        }


def shorten(case: Any) -> Any:
    """Returns the case with few samples and one epoch per training."""
    from kdtflite.data import Split

    return dataclasses.replace(
        case,
        train=Split(case.train.x[:QUICK], case.train.y[:QUICK]),
        test=Split(case.test.x[:QUICK], case.test.y[:QUICK]),
        teachers=tuple(dataclasses.replace(teacher, epochs=1) for teacher in case.teachers),
        student=dataclasses.replace(case.student, epochs=1),
        qat_epochs=1,
    )


def write_table(work: Path, path: Path) -> None:
    """Writes the table of the results so far."""
    rows: dict[str, Any] = {}
    for name in ROWS:
        teachers = [
            json.loads(file.read_text())["accuracy"]
            for file in sorted((work / name).glob("teacher*.json"))
        ]
        methods = {}
        for method in METHODS:
            files = sorted((work / name).glob(f"*/{method.replace(' ', '_')}.json"))
            if files:
                methods[method] = [json.loads(file.read_text()) for file in files]
        if methods:
            rows[name] = {"teachers": teachers, "methods": methods}
    result = {"machine": describe_machine(), "rows": rows}
    write_json(path, result, overwrite=True)
    write_text(path.with_suffix(".md"), as_markdown(result), overwrite=True)


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the results as one table per task."""
    machine = result["machine"]
    lines = ["# Small transformers, fully integer", ""]
    lines.append(
        f"`python benchmarks/quantized_transformers.py`, on {machine['cpu']}, {machine['cores']} "
        f"cores, LiteRT {machine['litert']}."
    )
    lines.append("Accuracy in percent on the test split, mean (and standard deviation) over seeds.")
    lines.append("Integer files come from the distilled student. same: samples that model and file")
    lines.append("put in the same class. aware: layers that are trained quantization-aware")
    lines.append("or folded into such layers.")
    for name, row in result["rows"].items():
        teachers = ", ".join(f"{100 * accuracy:.2f}" for accuracy in row["teachers"])
        lines += ["", f"## {ROWS[name]}", "", f"Accuracy of the teachers: {teachers}.", ""]
        lines.append("| | model | file | same | bytes | aware | proven integer | minutes | seeds |")
        lines.append("|---|---|---|---|---|---|---|---|---|")
        lines += [format_line(method, runs) for method, runs in row["methods"].items()]
    return "\n".join(lines) + "\n"


def format_line(method: str, runs: list[dict[str, Any]]) -> str:
    def format_percent(key: str) -> str:
        values = [100 * run[key] for run in runs if key in run]
        if not values:
            return "–"
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread}"

    first = runs[0]
    aware = f"{first['aware']} of {first['layers']}" if "aware" in first else "–"
    proven = {True: "yes", False: "**no**", None: "–"}[first["proven"]]
    size = f"{first['bytes']:,}" if "bytes" in first else "–"
    minutes = f"{statistics.mean(run['minutes'] for run in runs):.1f}"
    cells = [
        method,
        format_percent("model"),
        format_percent("file"),
        format_percent("same"),
        size,
        aware,
        proven,
    ]
    return f"| {' | '.join([*cells, minutes, str(len(runs))])} |"


if __name__ == "__main__":
    main()
