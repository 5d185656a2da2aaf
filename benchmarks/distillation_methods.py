"""Compares hard labels with every method of distillation, on MNIST and Fashion-MNIST.

    python benchmarks/distillation_methods.py --data path/to/folder

There is one teacher per data set, trained on all training images. Students of about 5,000 and
20,000 parameters are trained on the first `--samples` of them, so that a training takes half a
minute and is still long enough to converge. For each seed, every method starts from the same
weights and sees the same batches and augmented views. Each finished training is kept as a file, so
the same command resumes where it stopped. The table gives the mean and standard deviation of the
test accuracy over the seeds; no decision was based on the test samples.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kdtflite.evaluation.machine import count_usable_cores, describe_machine
from kdtflite.files import write_atomically, write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "distillation_methods.json"
DATA = {"mnist": "mnist.npz", "fashion_mnist": "fashion_mnist.npz"}
STUDENTS = {"5K": [8, 16, 24, 32, 40], "20K": [16, 32, 64, 80, 112]}
TEACHER = {"architecture": "convnet", "widths": [24, 48, 96]}
TEACHER_EPOCHS = {"mnist": 5, "fashion_mnist": 8}
BATCH = 256
# Layers of the student, each with the teacher's layer of the same height and width.
EARLY, LATE, POOLED = (
    ("block1_relu", "block1b_relu"),
    ("block4_relu", "block2b_relu"),
    ("pool",) * 2,
)


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        kind: "labels", "logits", "features" (layers, which the cache does not contain) or "auto".
        options: Arguments of `Distiller`.
    """

    kind: str
    options: Callable[[], dict[str, Any]]

    @property
    def live(self) -> bool:
        """Whether the teacher runs in every step."""
        return self.kind == "features"


@dataclass(frozen=True)
class Setting:
    """The options that all trainings share.

    Attributes:
        data: Folder of the data sets, or None to download them.
        samples: Training images of the students.
        epochs: Passes over them, each with new views.
        work: Folder of the teachers, caches and results.
    """

    data: Path | None
    samples: int
    epochs: int
    work: Path

    @property
    def results(self) -> Path:
        """Folder of the results."""
        return self.work / f"{self.samples}-samples-{self.epochs}-epochs"

    def result_path(self, data: str, student: str, name: str, seed: int) -> Path:
        """Returns the path of one training's result."""
        plain = "".join(c if c.isalnum() or c in ".=" else "-" for c in name)
        return self.results / f"{data}.{student}.{plain}.{seed}.json"


def list_methods() -> dict[str, Method]:
    """Returns every method by name, with its paper's defaults unless the name says otherwise."""
    import kdtflite

    of = kdtflite.losses

    def use_logits(loss: Any, hard: float = 0.5) -> Method:
        return Method("logits", lambda: {"losses": [loss()], "hard_label_weight": hard})

    def use_features(loss: Any) -> Method:
        # As in the papers: the labels with weight 1, the loss with its own weight.
        return Method("features", lambda: {"losses": [loss()], "hard_label_weight": 1.0})

    def standardize() -> Any:
        return of.LogitStandardization(of.SoftTargets(1.0), base_temperature=2.0)

    early_and_late = list(zip(EARLY, LATE, strict=True))
    return {
        "hard labels": Method("labels", lambda: {"losses": [], "hard_label_weight": 1.0}),
        "auto": Method("auto", lambda: {"losses": "auto"}),
        "soft targets T=1, w=0": use_logits(lambda: of.SoftTargets(1.0), 0.0),
        "soft targets T=1": use_logits(lambda: of.SoftTargets(1.0)),
        "soft targets T=2": use_logits(lambda: of.SoftTargets(2.0)),
        "soft targets T=4, w=0.1": use_logits(lambda: of.SoftTargets(4.0), 0.1),
        "reverse KL": use_logits(of.ReverseKL),
        "Jensen-Shannon": use_logits(of.JensenShannon),
        "hard targets": use_logits(of.HardTargets),
        "cross-entropy": use_logits(of.CrossEntropyDistillation),
        "logits MSE": use_logits(of.LogitsMSE),
        "decoupled KD": use_logits(of.DecoupledKD),
        "DIST": use_logits(of.DIST),
        "standardized logits": use_logits(standardize),
        "multi-level logits": use_logits(of.MultiLevelLogits),
        "smoothed targets": use_logits(of.SmoothedTargets),
        "confidence temperature": use_logits(of.ConfidenceTemperature),
        "hints": use_features(lambda: of.Hints(*LATE)),
        "attention transfer": use_features(lambda: of.AttentionTransfer(*early_and_late)),
        "NST": use_features(lambda: of.NST(*LATE)),
        "variational information": use_features(lambda: of.VariationalInformation(*LATE)),
        "relational KD, distances": use_features(
            lambda: of.RelationalKD(*POOLED, angle_weight=0.0)
        ),
        "similarity preserving": use_features(lambda: of.SimilarityPreserving(*LATE)),
        "PKT": use_features(lambda: of.PKT(*POOLED)),
        "CRD": use_features(lambda: of.CRD(*POOLED, bank_size=4096)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Example: python benchmarks/distillation_methods.py --data path/to/folder --seeds 3",
    )
    parser.add_argument(
        "--data", type=Path, help="folder with mnist.npz and fashion_mnist.npz; default: download"
    )
    parser.add_argument("--samples", type=int, default=12_000, help="training images of students")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="only these methods")
    cores = count_usable_cores()
    parser.add_argument("--workers", type=int, default=cores, help="parallel trainings")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/distillation_methods"), help="folder of the results"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    parser.add_argument("--teachers", action="store_true", help="only train the teachers")
    arguments = parser.parse_args()
    if min(arguments.epochs, arguments.seeds, arguments.workers) < 1 or arguments.samples < BATCH:
        parser.error(
            f"--epochs, --seeds and --workers must be at least 1, --samples at least {BATCH}"
        )
    names = arguments.only or list(list_methods())
    if unknown := set(names) - set(list_methods()):
        parser.error(f"no method {', '.join(unknown)}; there are: {', '.join(list_methods())}")
    setting = Setting(arguments.data, arguments.samples, arguments.epochs, arguments.work)
    for folder in (setting.work / "teachers", setting.results):
        folder.mkdir(parents=True, exist_ok=True)
    # One single-threaded process per training: small nets gain little from threads.
    os.environ.update(
        dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    )
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(teach, setting, data) for data in DATA]:
            future.result()
        if arguments.teachers:
            return
        jobs = [
            (data, student, name, seed)
            for seed in range(1, arguments.seeds + 1)
            for name in names
            for data in DATA
            for student in STUDENTS
        ]
        left = [job for job in jobs if not setting.result_path(*job).is_file()]
        say(f"{len(jobs) - len(left)} of {len(jobs)} trainings are done already")
        started = time.monotonic()
        futures = [pool.submit(train, setting, *job) for job in left]
        for done, future in enumerate(as_completed(futures), start=1):
            rest = (time.monotonic() - started) / done * (len(left) - done)
            say(f"{done} of {len(left)}: {future.result()}, about {rest / 60:.0f} min left")
            write_table(setting, names, arguments.seeds, arguments.json)
    write_table(setting, names, arguments.seeds, arguments.json)
    print(arguments.json.with_suffix(".md").read_text(), end="")


@functools.cache
def load_dataset(setting: Setting, data: str) -> Any:
    import kdtflite

    path = "auto" if setting.data is None else setting.data / DATA[data]
    return kdtflite.data.load(data, path=path, seed=0)


def make_augmentation(data: str) -> Any:
    from kdtflite.data import Augmentation

    return Augmentation(shift=2.0, flip=data == "fashion_mnist")


def teach(setting: Setting, data: str) -> None:
    """Trains the teacher of a data set and caches its outputs for every view, once."""
    import tf_keras as keras

    from kdtflite.data.batches import steps_per_epoch, training_batches
    from kdtflite.models import build_model

    dataset = load_dataset(setting, data)
    path = setting.work / "teachers" / f"{data}.keras"
    if not path.is_file():
        keras.utils.set_random_seed(0)
        teacher = build_model(
            **TEACHER, input_shape=dataset.sample_shape, classes=dataset.classes, name="teacher"
        )
        epochs, steps = TEACHER_EPOCHS[data], steps_per_epoch(dataset.train, 128)
        compile_plainly(teacher, 0.003, epochs * steps)
        batches = training_batches(
            dataset.train,
            batch_size=128,
            epochs=epochs,
            seed=0,
            augmentation=make_augmentation(data),
        )
        teacher.fit(batches, steps_per_epoch=steps, epochs=epochs, verbose=0)
        _, accuracy = teacher.evaluate(dataset.test.x, dataset.test.y, batch_size=500, verbose=0)
        with write_atomically(path, overwrite=True) as file:
            teacher.save(file)
        write_json(path.with_suffix(".json"), {"test_accuracy": accuracy}, overwrite=True)
        say(f"teacher of {data}: test accuracy {accuracy:.4f}")
    load_teaching(setting, data)


@functools.cache
def load_teaching(setting: Setting, data: str) -> tuple[Any, Any, Any]:
    """Returns the teacher, the students' training samples, and its outputs for their views."""
    import kdtflite

    train = load_dataset(setting, data).train
    train = kdtflite.data.Split(train.x[: setting.samples], train.y[: setting.samples])
    teacher = kdtflite.load_model(setting.work / "teachers" / f"{data}.keras")
    cache = kdtflite.cache_teacher(
        teacher,
        train,
        setting.work / "teachers" / f"{data}-{len(train)}-samples-{setting.epochs}-views",
        views=setting.epochs,
        augmentation=make_augmentation(data),
        seed=0,
    )
    return teacher, train, cache


def train(setting: Setting, data: str, size: str, name: str, seed: int) -> str:
    """Trains one student and writes its result."""
    import tf_keras as keras

    from kdtflite.distillation import Distiller
    from kdtflite.models import build_model

    path = setting.result_path(data, size, name, seed)
    method, dataset = list_methods()[name], load_dataset(setting, data)
    teacher, samples, cache = load_teaching(setting, data)
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    student = build_model(
        "depthwise",
        input_shape=dataset.sample_shape,
        classes=dataset.classes,
        widths=STUDENTS[size],
        name="student",
    )
    batches = cache.batches(samples, batch_size=BATCH, epochs=setting.epochs, seed=seed)
    if method.live or method.kind == "labels":
        batches = batches.map(lambda cached, y: (cached.inputs, y))
    teaching = {"labels": None, "features": teacher}.get(method.kind, cache)
    steps = len(samples) // BATCH
    distiller = Distiller(student, teaching, **method.options())
    compile_plainly(distiller, 0.006, setting.epochs * steps)
    started = time.monotonic()
    distiller.fit(
        batches,
        steps_per_epoch=steps,
        epochs=setting.epochs,
        validation_data=(dataset.validation.x, dataset.validation.y),
        validation_batch_size=500,
        verbose=0,
    )
    seconds = time.monotonic() - started
    _, accuracy = distiller.evaluate(dataset.test.x, dataset.test.y, batch_size=500, verbose=0)
    choice = getattr(distiller, "choice", None)
    result = {
        "test_accuracy": accuracy,
        "seconds": round(seconds, 1),
        "parameters": student.count_params(),
        "choice": None if choice is None else choice.to_dict(),
    }
    write_json(path, result, overwrite=True)
    return f"{data}, {size}, {name}, seed {seed}: {accuracy:.4f} in {seconds:.0f} s"


def compile_plainly(model: Any, learning_rate: float, steps: int) -> None:
    """Compiles with Adam, a warm-up over a tenth of the steps, cosine decay and cross-entropy."""
    import tf_keras as keras

    schedule = keras.optimizers.schedules.CosineDecay(
        0.01 * learning_rate,
        steps - steps // 10,
        alpha=0.01,
        warmup_target=learning_rate,
        warmup_steps=steps // 10,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])


def write_table(setting: Setting, names: list[str], seeds: int, path: Path) -> None:
    """Writes the table of the results so far."""
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        for data in DATA:
            for size in STUDENTS:
                files = [setting.result_path(data, size, name, seed + 1) for seed in range(seeds)]
                results = [json.loads(file.read_text()) for file in files if file.is_file()]
                if not results:
                    continue
                accuracies = [result["test_accuracy"] for result in results]
                table.setdefault(name, {})[f"{data} {size}"] = {
                    "mean": statistics.mean(accuracies),
                    "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                    "test_accuracy": accuracies,
                    "seconds": [result["seconds"] for result in results],
                    "parameters": results[0]["parameters"],
                    "chosen": [r["choice"]["chosen"] for r in results if r["choice"]],
                }
    teachers = {
        data: json.loads((setting.work / "teachers" / f"{data}.json").read_text()) for data in DATA
    }
    result = {
        "seeds": seeds,
        "samples": setting.samples,
        "epochs": setting.epochs,
        "batch_size": BATCH,
        "teachers": teachers,
        "methods": table,
        "machine": describe_machine(),
    }
    write_json(path, result, overwrite=True)
    write_text(path.with_suffix(".md"), as_markdown(result), overwrite=True)


def as_markdown(result: dict[str, Any]) -> str:
    rows = [f"{data} {size}" for data in DATA for size in STUDENTS]
    baseline = result["methods"].get("hard labels", {})

    def cell(entry: dict[str, Any] | None, row: str) -> str:
        if entry is None:
            return "–"
        text = f"{100 * entry['mean']:.2f}"
        if entry["deviation"] is not None:
            text += f" ± {100 * entry['deviation']:.2f}"
        ahead = row in baseline and entry["mean"] > baseline[row]["mean"]
        return f"**{text}**" if ahead else text

    lines = [
        f"| {name} | {' | '.join(cell(entries.get(row), row) for row in rows)} |"
        for name, entries in result["methods"].items()
    ]
    teachers = ", ".join(
        f"{data} {100 * values['test_accuracy']:.2f} %"
        for data, values in result["teachers"].items()
    )
    return "\n".join(
        [
            "# Distillation methods",
            "",
            f"Test accuracy in %, mean ± standard deviation, {result['seeds']} seed(s), after "
            f"{result['epochs']} epochs of {result['samples']:,} training images with batches of "
            f"{result['batch_size']}, on augmented views (shift 2; flip on Fashion-MNIST). "
            f"Teachers, trained on all images: {teachers}. Bold: above the hard labels' "
            "mean. Losses on logits and the hard labels have equal weights unless the name says "
            "otherwise (w: the hard labels' weight); losses on features are added to the labels.",
            "",
            f"| method | {' | '.join(rows)} |",
            f"| --- |{' ---: |' * len(rows)}",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
