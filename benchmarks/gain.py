"""What distillation gains: the files of whole runs against their own baselines, by seed.

    python benchmarks/gain.py all --data path/to/folder        # resumes where it stopped
    python benchmarks/gain.py cifar10 --seeds 1
    python benchmarks/gain.py mnist_15k --epochs 1 --seeds 1   # a trial of the script itself

There is one teacher per row: it is trained first, or it is somebody else's file. For every seed
one `kdtflite.run` makes the student's files, and one more training gives hard labels with label
smoothing. No decision is based on test samples. The gain is the difference from the same student
on hard labels with post-training quantization, by seed; its interval is a bootstrap over the test
samples, whose differences are averaged over the seeds first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keyword_data import write_keywords

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_atomically, write_json, write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULT = DOCS / "benchmarks" / "gain.json"
BASELINE = "ptq_int8"
SMOOTHING = 0.1


@dataclass(frozen=True)
class Row:
    """One line of the table of targets.

    Attributes:
        title: For people.
        data: A named data set, or "keywords".
        student: The recipe's student.
        distillation: The recipe's distillation, of which the quantization is a short tail.
        teacher: The recipe's teacher, or a file in the data's folder.
        most_bytes: The largest file that counts.
        wanted: The accuracy to reach.
        labeled: Share of the training samples that keep their label.
    """

    title: str
    data: str
    student: dict[str, Any]
    distillation: dict[str, Any]
    teacher: dict[str, Any] | str
    most_bytes: int
    wanted: float
    labeled: float | None = None


# One block for small nets: SGD with Nesterov momentum, a short rise, a cosine, L2 on kernels.
_SGD = {"batch_size": 128, "optimizer": "sgd", "learning_rate": 0.2, "weight_decay": 0.0002}
_DIGIT = {"crop": 2, "rotation": 8, "zoom": 0.08}
_GARMENT = {"crop": 2, "flip": True}
_PICTURE = {"crop": 4, "flip": True}
# An epoch of keywords passes over every clip twelve times. The losses are named: trials within a
# third of so short a training would decide by chance.
_WORD = {
    "temperature": 2,
    "hard_label_weight": 0.3,
    "epochs": 8,
    "batch_size": 128,
    "optimizer": "adamw",
    "learning_rate": 0.004,
    "weight_decay": 0.01,
    "cached_views": 1,
}


def _train(epochs: int, augmentation: dict[str, Any], **more: Any) -> dict[str, Any]:
    rise = 0.05 * epochs
    return {**_SGD, "epochs": epochs, "warmup_epochs": rise, "augmentation": augmentation, **more}


def _teach(architecture: str, widths: list[int], training: dict[str, Any]) -> dict[str, Any]:
    return {"architecture": architecture, "widths": widths, "training": training}


_TEACHERS = {
    "mnist": _teach("convnet", [32, 64, 128], _train(15, _DIGIT, learning_rate=0.1)),
    "fashion_mnist": _teach("convnet", [32, 64, 128], _train(25, _GARMENT, learning_rate=0.1)),
    "cifar10": _teach("resnet", [48, 96, 192], _train(40, _PICTURE, label_smoothing=0.1)),
}
_WORDS = {"architecture": "depthwise", "widths": [32, 48, 64, 64, 64]}


def _make_row(
    title: str, data: str, widths: list[int], epochs: int, most_bytes: int, wanted: float
) -> Row:
    student = {"architecture": "resnet" if data == "cifar10" else "convnet", "widths": widths}
    moved = {"mnist": _DIGIT, "fashion_mnist": _GARMENT, "cifar10": _PICTURE}[data]
    training = _train(epochs, moved, cached_views=8)
    return Row(title, data, student, training, _TEACHERS[data], most_bytes, wanted)


_KEYWORDS = "reference_models/kws_ref_model.tflite"
ROWS = {
    "mnist_15k": _make_row("MNIST", "mnist", [8, 12, 18], 40, 15_000, 0.992),
    "mnist_32k": _make_row("MNIST", "mnist", [12, 20, 32], 40, 32_000, 0.9945),
    "fashion_16k": _make_row("Fashion-MNIST", "fashion_mnist", [8, 12, 18], 60, 16_000, 0.905),
    "fashion_64k": _make_row("Fashion-MNIST", "fashion_mnist", [16, 32, 48], 60, 64_000, 0.925),
    "cifar10": _make_row("CIFAR-10, ResNet-8", "cifar10", [16, 32, 64], 100, 90_000, 0.86),
    "keywords": Row("Keywords, all labels", "keywords", _WORDS, _WORD, _KEYWORDS, 40_000, 0.87),
    "keywords_quarter": Row(
        "Keywords, a quarter of the labels",
        "keywords",
        _WORDS,
        _WORD,
        _KEYWORDS,
        30_000,
        0.85,
        0.25,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*ROWS, "all"], help="a row of the table, or all")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("KDTFLITE_DATA"),
        help="folder with the data sets' files; default: $KDTFLITE_DATA",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="epochs of every training, for a trial")
    parser.add_argument("--teacher", type=Path, help="a trained teacher in place of the row's own")
    parser.add_argument("--work", type=Path, default=Path("runs/gain"), help="folder of the runs")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; by default docs/benchmarks/gain.json"
    )
    parser.add_argument(
        "--table", type=Path, default=DOCS / "results.md", help="by default docs/results.md"
    )
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("pass --data, or set KDTFLITE_DATA")
    names = list(ROWS) if arguments.name == "all" else [arguments.name]
    for seed in range(1, arguments.seeds + 1):
        for name in names:
            if not (arguments.work / name / f"{seed}.json").is_file():
                make_cells(name, seed, arguments)
                write_table(arguments.work, arguments.json, arguments.table)
    write_table(arguments.work, arguments.json, arguments.table)
    print(arguments.table.read_text(), end="")


def make_cells(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Makes and measures everything of one row and seed, from where it stopped."""
    import kdtflite

    folder = arguments.work / name
    folder.mkdir(parents=True, exist_ok=True)
    recipe = make_recipe(name, seed, arguments)
    result = kdtflite.run(recipe, output=folder / f"run-{seed}")
    test = kdtflite.data.load(**_locate(ROWS[name], arguments), seed=seed).test
    seconds = result.report["seconds"]
    cells: dict[str, Any] = {}
    right: dict[str, np.ndarray] = {}

    def measure(key: str, label: str, lite: Any, minutes: float, p50: float | None) -> None:
        evaluation = kdtflite.evaluate(lite, (test.x, test.y), progress=False)
        right[key] = evaluation.predictions == test.y
        cells[key] = {
            "label": label,
            "accuracy": evaluation.accuracy,
            "bytes": len(lite.content),
            "bytes_without_names": len(kdtflite.pack(lite, "none").content),
            "minutes": round(minutes, 2),
            "p50": p50,
        }

    for model in result.report["models"]:
        lite = kdtflite.LiteModel.load(result.folder / model["file"])
        spent = sum_seconds(model["key"], seconds) / 60
        measure(model["key"], model["label"], lite, spent, model["latency_ms"]["p50"])
    started = time.monotonic()
    for key, label, lite in train_smoothed(result.folder, folder / f"smoothed-{seed}"):
        measure(key, label, lite, (time.monotonic() - started) / 60, None)
    with write_atomically(folder / f"{seed}.npz", overwrite=True) as path, open(path, "wb") as file:
        np.savez_compressed(file, **right)
    shipped = (result.folder / "student.tflite").read_bytes()
    same = [
        m["key"]
        for m in result.report["models"]
        if (result.folder / m["file"]).read_bytes() == shipped
    ]
    write_json(
        folder / f"{seed}.json",
        {"cells": cells, "shipped": same[0] if same else None, "machine": describe_machine()},
        overwrite=True,
    )


def sum_seconds(key: str, seconds: dict[str, float]) -> float:
    """Returns the seconds of the stage that trained a model of a run."""
    from kdtflite.reporting.variants import get_variant

    variant = get_variant(key)
    return 0.0 if variant is None else seconds.get(variant.stage, 0.0)


def make_recipe(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the recipe of a run; trains the row's teacher first."""
    row = ROWS[name]
    located = _locate(row, arguments)
    data = {"name": str(located["name_or_path"]), "path": str(located["path"])}
    recipe: dict[str, Any] = {
        "name": f"gain-{name}",
        "description": row.title,
        "seed": seed,
        "data": data,
        "student": row.student,
        "distillation": _shorten(row.distillation, arguments.epochs),
        "conversion": {"target": "int8x4"},
        "evaluation": {"pictures": 0},
    }
    if arguments.teacher is not None:
        path = arguments.teacher
    elif isinstance(row.teacher, str):
        path = arguments.data / row.teacher
    else:
        training = _shorten(row.teacher["training"], arguments.epochs)
        teacher = {**row.teacher, "training": training}
        folder = arguments.work / "teachers" / row.data
        path = train_teacher({**recipe, "seed": 0, "teacher": teacher}, folder)
    return {**recipe, "teacher": {"load": str(path)}}


def _shorten(training: dict[str, Any], epochs: int | None) -> dict[str, Any]:
    return training if epochs is None else {**training, "epochs": epochs, "warmup_epochs": 0}


def _locate(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `kdtflite.data.load`; makes the features of keywords first."""
    if row.data != "keywords":
        return {"name_or_path": row.data, "path": arguments.data}
    share = "all" if row.labeled is None else f"{row.labeled:g}"
    path = arguments.work / f"keywords-{share}.npz"
    write_keywords(arguments.data / "speech_commands.npz", path, labeled=row.labeled)
    return {"name_or_path": path.absolute(), "path": "auto"}


def train_teacher(recipe: dict[str, Any], folder: Path) -> Path:
    """Trains a teacher as the stage of a run does, from where it stopped, and returns its file."""
    import tensorflow as tf
    import tf_keras as keras

    from kdtflite.pipeline.recipe import load_recipe
    from kdtflite.pipeline.stages import STAGES, Run

    path = folder / "teacher" / "model.keras"
    if not path.is_file():
        tf.config.experimental.enable_op_determinism()
        path.parent.mkdir(parents=True, exist_ok=True)
        run = Run(load_recipe(recipe), folder, {})
        keras.utils.set_random_seed(run.recipe.seed)
        next(stage for stage in STAGES if stage.name == "teacher").work(run)
        keras.backend.clear_session()
    return path


def train_smoothed(run_folder: Path, folder: Path) -> list[tuple[str, str, Any]]:
    """Trains a run's baseline with label smoothing, and returns its float and int8 files."""
    import tf_keras as keras

    import kdtflite
    from kdtflite.pipeline.optimizers import make_optimizer
    from kdtflite.pipeline.recipe import load_recipe
    from kdtflite.pipeline.samples import TrainingSamples
    from kdtflite.pipeline.stages import Run, build_student
    from kdtflite.pipeline.training import fit_resumably, make_cross_entropy

    run = Run(load_recipe(run_folder / "recipe.yaml"), folder, {})
    values = run.recipe.baseline.model_copy(update={"label_smoothing": SMOOTHING})
    folder.mkdir(exist_ok=True)
    student, samples = build_student(run), TrainingSamples.take_labeled(run.dataset)
    steps = samples.count_steps(values.batch_size)
    student.compile(
        make_optimizer(values, steps, student.trainable_variables),
        make_cross_entropy(values),
        ["accuracy"],
    )
    title, seed = "student, label smoothing", run.recipe.seed
    fit_resumably(student, student, run.dataset, values, seed=seed, folder=folder, title=title)
    train = run.dataset.train.x
    options = {"samples": run.recipe.conversion.representative_samples, "io_dtype": "int8"}
    files = [
        (
            "smoothed",
            "Student, label smoothing (float)",
            kdtflite.convert(student, target="float32"),
        ),
        (
            "smoothed_ptq_int8",
            "Student, label smoothing, PTQ int8",
            kdtflite.convert(student, train, input_range=run.dataset.input_range, **options),
        ),
    ]
    keras.backend.clear_session()
    return files


def write_table(work: Path, path: Path, table: Path) -> None:
    """Writes the results so far, as JSON and as tables."""
    rows = {name: summarize(name, work / name) for name in ROWS}
    result = {"machine": describe_machine(), "rows": {k: row for k, row in rows.items() if row}}
    write_json(path, result, overwrite=True)
    write_text(table, as_markdown(result), overwrite=True)


def summarize(name: str, folder: Path) -> dict[str, Any] | None:
    """Returns the cells of a row: means and deviations over its seeds, and the gains."""
    files = sorted(folder.glob("*.json"))
    runs = [json.loads(file.read_text()) for file in files]
    right = [np.load(file.with_suffix(".npz")) for file in files]
    if not runs:
        return None
    cells = {}
    for key, first in runs[0]["cells"].items():
        accuracies = [run["cells"][key]["accuracy"] for run in runs]
        cells[key] = {
            "label": first["label"],
            "accuracy": statistics.mean(accuracies),
            "deviation": statistics.stdev(accuracies) if len(runs) > 1 else None,
            "accuracies": accuracies,
            "bytes": max(run["cells"][key]["bytes"] for run in runs),
            "bytes_without_names": max(run["cells"][key]["bytes_without_names"] for run in runs),
            "minutes": statistics.mean(run["cells"][key]["minutes"] for run in runs),
            "p50_ratio": find_ratio(key, [run["cells"] for run in runs]),
            "gain": find_gain([one[key] for one in right], [one[BASELINE] for one in right]),
            "shipped": sum(run["shipped"] == key for run in runs),
        }
    return {"title": ROWS[name].title, "seeds": len(runs), "cells": cells}


def find_ratio(key: str, runs: list[dict[str, Any]]) -> float | None:
    """Returns the median ratio of a file's p50 to that of the baseline, which ran just before."""
    ratios = [cells[key]["p50"] / cells[BASELINE]["p50"] for cells in runs if cells[key]["p50"]]
    return statistics.median(ratios) if ratios else None


def find_gain(own: list[np.ndarray], baseline: list[np.ndarray]) -> list[float]:
    """Returns the mean difference in accuracy and its interval of 95 %, paired by sample."""
    from scipy.stats import bootstrap

    difference = np.mean([a.astype(float) - b for a, b in zip(own, baseline, strict=True)], axis=0)
    if not difference.any():
        return [0.0, 0.0, 0.0]
    interval = bootstrap(
        (difference,), np.mean, n_resamples=2000, batch=100, method="percentile", random_state=0
    ).confidence_interval
    return [float(difference.mean()), float(interval.low), float(interval.high)]


def as_markdown(result: dict[str, Any]) -> str:
    """Returns the results as one table per row of targets."""
    machine = result["machine"]
    lines = [
        "# Results: what distillation gains",
        "",
        f"`python benchmarks/gain.py all`, on {machine['cpu']}, {machine['cores']} cores, LiteRT "
        f"{machine['litert']}. Accuracy on test",
        "samples in percent, mean ± standard deviation over the seeds. Gain: over hard labels with",
        "post-training quantization, in points, with the bootstrap interval of 95 % over the test",
        "samples, paired. Bytes: packed, with all names, and without the names of inner tensors.",
        "p50: on one thread, as a ratio to that of hard labels with post-training quantization in",
        "the same run. Minutes: of the training that the file was made from. Shipped: in how many",
        "runs this file was chosen on validation samples.",
    ]
    for name, row in result["rows"].items():
        target = ROWS[name]
        lines += [
            "",
            f"## {row['title']}, at most {target.most_bytes:,} bytes: "
            f"{100 * target.wanted:.2f} wanted ({row['seeds']} seeds)",
            "",
        ]
        if (DOCS / "models" / f"{name}.tflite").is_file():
            lines += [
                f"The file that the first seed shipped: [{name}.tflite](models/{name}.tflite).",
                "",
            ]
        lines += [
            "| | accuracy | bytes | no names | gain | p50 | minutes | shipped |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for cell in row["cells"].values():
            spread = "" if cell["deviation"] is None else f" ± {100 * cell['deviation']:.2f}"
            gain, low, high = (100 * value for value in cell["gain"])
            p50 = "" if cell["p50_ratio"] is None else f"{cell['p50_ratio']:.2f}"
            small = f"{cell['bytes_without_names']:,}"
            lines.append(
                f"| {cell['label']} | {100 * cell['accuracy']:.2f}{spread} | {cell['bytes']:,} | "
                f"{small} | {gain:+.2f} [{low:+.2f}, {high:+.2f}] | {p50} | "
                f"{cell['minutes']:.1f} | "
                f"{cell['shipped'] or ''} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
