"""How many images a second a student learns from, alone and with every kind of teacher.

    python benchmarks/distillation_throughput.py

One student, trained alone (plain tf_keras), with a live teacher and with a teacher whose answers
are cached, each with and without quantization-aware training; and by Keras 3's own
`keras.distillation.Distiller` on the same two networks, with the same weights, batches and losses,
compiled by XLA (its default) and not. Every way is one long `fit` in a process of its own, so that
its memory is its own, and it waits before every epoch for its turn: epochs of all ways are
interleaved, a slow minute hits them all, and what is timed is a whole epoch of a training that
has been running for a while. Stated are the medians over the rounds and of the ratios of each
round. Peak memory is that of the process above what it held with everything imported and the data
made.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text
from kdtflite.progress import say

RESULT = Path(__file__).resolve().parents[1] / "docs/benchmarks/distillation_throughput.json"
CLASSES = 10
TEMPERATURE = 4.0
HARD_LABEL_WEIGHT = 0.1

QAT = ", QAT"
ALONE, LIVE, CACHED = "student alone", "live teacher", "cached teacher"
FORWARD = "teacher forward"
KERAS3, KERAS3_NO_XLA = "Keras 3 Distiller", "Keras 3 Distiller, no XLA"
WAYS = (ALONE, LIVE, CACHED, ALONE + QAT, LIVE + QAT, CACHED + QAT, FORWARD, KERAS3, KERAS3_NO_XLA)


@dataclass(frozen=True)
class Case:
    """Two networks of `kdtflite.models.build_model`, and how many images they are given."""

    shape: tuple[int, int, int]
    teacher: tuple[str, tuple[int, ...]]
    student: tuple[str, tuple[int, ...]]
    batch: int
    steps: int  # an epoch: enough of them that to start one weighs little

    @property
    def images(self) -> int:
        """How many an epoch has."""
        return self.batch * self.steps


_SMALL = ("convnet", (24, 48, 96)), ("depthwise", (16, 24, 32, 48, 64))
_RESNETS = ("resnet", (32, 64, 128)), ("resnet", (16, 32, 64))
CASES = {
    "28 x 28 x 1, convnet to depthwise, batch 128": Case((28, 28, 1), *_SMALL, 128, 40),
    "28 x 28 x 1, convnet to depthwise, batch 32": Case((28, 28, 1), *_SMALL, 32, 80),
    "32 x 32 x 3, ResNet to ResNet-8, batch 64": Case((32, 32, 3), *_RESNETS, 64, 12),
}


@dataclass(frozen=True)
class Target:
    """How fast a way should be over the time of others together, or how little it should hold."""

    way: str
    others: tuple[str, ...]
    bound: float  # of speeds at least, of memory at most
    memory: bool = False

    def __str__(self) -> str:
        what = "memory of " if self.memory else ""
        return f"{what}{self.way} / {' + '.join(self.others)}"

    def measured(self, seconds: dict[str, list[float]], memory: dict[str, float]) -> float:
        """Returns the ratio; of speeds the median of the rounds' ratios."""
        if self.memory:
            return memory[self.way] / sum(memory[other] for other in self.others)
        others = (seconds[other] for other in self.others)
        rounds = zip(seconds[self.way], *others, strict=True)
        return statistics.median(sum(theirs) / own for own, *theirs in rounds)


TARGETS = (
    Target(CACHED, (ALONE,), 0.95),
    Target(CACHED + QAT, (ALONE + QAT,), 0.95),
    Target(LIVE, (KERAS3,), 1.0),
    Target(LIVE, (KERAS3_NO_XLA,), 1.0),
    Target(LIVE, (FORWARD, ALONE), 0.95),
    Target(LIVE + QAT, (FORWARD, ALONE + QAT), 0.95),
    Target(LIVE, (FORWARD, ALONE), 1.1, memory=True),
    Target(LIVE + QAT, (FORWARD, ALONE + QAT), 1.1, memory=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python benchmarks/distillation_throughput.py --rounds 21",
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed epochs a way")
    parser.add_argument("--warm-up", type=int, default=2, help="epochs before them")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps, to see that everything runs"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="result; the table goes beside it as .md"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.warm_up < 1:
        parser.error("--rounds and --warm-up start at 1")
    cases, rounds = CASES, arguments.rounds
    if arguments.quick:
        cases = {name: replace(case, steps=case.steps // 6) for name, case in CASES.items()}
        rounds = min(rounds, 3)
    result = {
        "rounds": rounds,
        "targets": {str(target): target.bound for target in TARGETS},
        "machine": describe_machine(),
        "versions": {name: metadata.version(name) for name in ("tensorflow", "tf_keras", "keras")},
        "cases": {
            name: measure(name, case, rounds, arguments.warm_up) for name, case in cases.items()
        },
    }
    write_json(arguments.json, result, overwrite=True)
    write_text(arguments.json.with_suffix(".md"), as_markdown(result), overwrite=True)
    print(as_markdown(result), end="")


def measure(name: str, case: Case, rounds: int, warm_up: int) -> dict[str, Any]:
    """Returns the seconds of every epoch of every way, its peak memory, and what they say."""
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu_seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    say(f"{name}: getting ready")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as at_the_end:
        preparing = spawn.Process(target=prepare, args=(case, Path(folder)))
        preparing.start()
        preparing.join()
        if preparing.exitcode:
            raise SystemExit(f"{name}: the networks could not be made; the error is above.")
        workers: dict[str, Connection] = {}
        for way in WAYS:
            workers[way], other = spawn.Pipe()
            process = spawn.Process(
                target=work, args=(other, way, case, Path(folder), warm_up + rounds), daemon=True
            )
            process.start()
            other.close()  # a worker that dies is then seen here as the end of the pipe
            at_the_end.callback(process.join)
            at_the_end.callback(process.terminate)
        try:
            for _ in range(warm_up):
                for worker in workers.values():
                    worker.send("go")
                for worker in workers.values():
                    worker.recv()
            for number in range(rounds):
                # Another one goes first each time.
                first = number % len(WAYS)
                for way in WAYS[first:] + WAYS[:first]:
                    workers[way].send("go")
                    wall, cpu = workers[way].recv()
                    seconds[way].append(wall)
                    cpu_seconds[way].append(cpu)
                say(f"{name}: round {number + 1} of {rounds}")
            memory = {way: worker.recv() for way, worker in workers.items()}
        except (EOFError, OSError):
            raise SystemExit(
                f"{name}: a process ended before its time; its error is above."
            ) from None
    return {
        **asdict(case),
        "images_per_second": {w: case.images / statistics.median(s) for w, s in seconds.items()},
        "peak_memory_mb": memory,
        "ratios": {str(t): t.measured(seconds, memory) for t in TARGETS},
        "ratios_of_cpu_time": {str(t): t.measured(cpu_seconds, memory) for t in TARGETS},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def prepare(case: Case, folder: Path) -> None:
    """Writes both networks, and the teacher's answers, for every way to read."""
    import tf_keras as keras

    import kdtflite

    keras.utils.set_random_seed(0)
    networks = {"teacher": case.teacher, "student": case.student}
    for role, (architecture, widths) in networks.items():
        model = kdtflite.models.build_model(
            architecture, input_shape=case.shape, classes=CLASSES, widths=widths, name=role
        )
        model.save(folder / f"{role}.h5")  # the format that Keras 3 reads too
    teacher = keras.models.load_model(folder / "teacher.h5", compile=False)
    kdtflite.cache_teacher(teacher, data(case), folder / "cache")


def work(connection: Connection, way: str, case: Case, folder: Path, epochs: int) -> None:
    """Trains in one way, in a process of its own; waits before every epoch for its turn."""
    turns = Turns(connection)
    run = run_keras3 if way in (KERAS3, KERAS3_NO_XLA) else run_tf_keras
    run(way, case, folder, turns, epochs)
    turns.end()
    connection.send((peak_memory() - turns.memory_at_first) / 2**20)


class Turns:
    """Takes turns with the other workers, an epoch each, and tells how long it took."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.started: tuple[float, float] | None = None
        self.memory_at_first = 0

    def imported(self) -> None:
        """Everything is imported and the data are made; what is held from now on counts."""
        self.memory_at_first = peak_memory()

    def next(self) -> None:
        """Ends an epoch, waits for the turn, and begins another."""
        self.end()
        self.connection.recv()
        self.started = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Tells how many seconds an epoch took, by the clock and of all cores together."""
        if self.started is not None:
            wall, cpu = self.started
            self.connection.send((time.perf_counter() - wall, time.process_time() - cpu))

    def callback(self, base: type) -> Any:
        """Returns a callback of the Keras that `base` is of."""

        def on_epoch_begin(self: Any, epoch: int, logs: Any = None) -> None:
            turns.next()

        turns = self
        return type("TakeTurns", (base,), {"on_epoch_begin": on_epoch_begin})()


def run_tf_keras(way: str, case: Case, folder: Path, turns: Turns, epochs: int) -> None:
    """Trains by tf_keras, or runs the teacher alone."""
    import tensorflow as tf
    import tf_keras as keras

    # Importing is no part of what a way holds: every way imports all, now.
    from kdtflite import Distiller, quantize_aware
    from kdtflite.distillation.losses import SoftTargets
    from kdtflite.distillation.teachers import TeacherCache

    x, y = data(case)
    tf.zeros(1)  # starts TensorFlow
    turns.imported()
    keras.utils.set_random_seed(0)
    if not way.startswith((ALONE, CACHED)):
        teacher = keras.models.load_model(folder / "teacher.h5", compile=False)
    if way == FORWARD:
        forward = tf.function(lambda images: teacher(images, training=False))
        images = tf.constant(x[: case.batch])
        for _ in range(epochs):
            turns.next()
            for _ in range(case.steps):
                forward(images)
        return
    student = keras.models.load_model(folder / "student.h5", compile=False)
    if way.endswith(QAT):
        student = quantize_aware(student, x[:256])
    given: dict[str, Any] = {"x": x, "y": y, "batch_size": case.batch}
    if way.startswith(CACHED):
        teacher = TeacherCache.open(folder / "cache")
        batches = teacher.batches((x, y), batch_size=case.batch, epochs=epochs)
        given = {"x": batches, "steps_per_epoch": case.steps}
    if way.startswith(ALONE):
        model = student
    else:
        model = Distiller(
            student,
            teacher,
            losses=[SoftTargets(TEMPERATURE)],
            hard_label_weight=HARD_LABEL_WEIGHT,
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, ["accuracy"])
    callback = turns.callback(keras.callbacks.Callback)
    model.fit(**given, epochs=epochs, verbose=0, callbacks=[callback])


def run_keras3(way: str, case: Case, folder: Path, turns: Turns, epochs: int) -> None:
    """Trains by Keras 3's Distiller."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
        """Reads what tf_keras wrote: Keras 3 knows no groups, of which there is 1."""

        def __init__(self, *, groups: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    x, y = data(case)
    tf.zeros(1)  # starts TensorFlow
    turns.imported()
    keras.utils.set_random_seed(0)
    teacher, student = (
        keras.models.load_model(
            folder / f"{role}.h5",
            custom_objects={"DepthwiseConv2D": DepthwiseConv2D},
            compile=False,
        )
        for role in ("teacher", "student")
    )
    model = keras.distillation.Distiller(
        teacher,
        student,
        keras.distillation.LogitsDistillation(temperature=TEMPERATURE),
        student_loss_weight=HARD_LABEL_WEIGHT,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, ["accuracy"], jit_compile="auto" if way == KERAS3 else False)
    callback = turns.callback(keras.callbacks.Callback)
    model.fit(x, y, case.batch, epochs, verbose=0, callbacks=[callback])


def data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels, the same every time."""
    random = np.random.default_rng(0)
    images = random.random((case.images, *case.shape), np.float32)
    return images, random.integers(0, CLASSES, case.images)


def peak_memory() -> int:
    """Returns how many bytes this process has held at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def as_markdown(result: dict[str, Any]) -> str:
    machine, versions, cases = result["machine"], result["versions"], result["cases"]
    lines = [
        "# Distillation throughput",
        "",
        f"Medians of {result['rounds']} interleaved epochs a way; {machine['cpu']}, "
        f"{machine['cores']} cores, TensorFlow {versions['tensorflow']}, tf_keras "
        f"{versions['tf_keras']}, Keras {versions['keras']}. Peak memory is above what the "
        "process holds with everything imported. Ratios of speeds are medians of the rounds' "
        "ratios; of CPU time (all cores together) they say what another load on the machine "
        "leaves of them.",
    ]
    for name, case in cases.items():
        lines += [
            "",
            f"## {name}",
            "",
            "| way | images/s | ms a step | peak memory, MB |",
            "| --- | ---: | ---: | ---: |",
        ]
        for way, speed in case["images_per_second"].items():
            step, memory = 1e3 * case["batch"] / speed, case["peak_memory_mb"][way]
            lines.append(f"| {way} | {speed:,.0f} | {step:.2f} | {memory:.0f} |")
        lines += [
            "",
            "| ratio | target | measured | met | of CPU time |",
            "| --- | --- | ---: | --- | ---: |",
        ]
        for target in TARGETS:
            ratio, of_cpu = (case[of][str(target)] for of in ("ratios", "ratios_of_cpu_time"))
            good = ratio <= target.bound if target.memory else ratio >= target.bound
            at = "at most" if target.memory else "at least"
            met = "yes" if good else "no"
            cpu = "" if target.memory else f"{of_cpu:.2f}"
            lines.append(f"| {target} | {at} {target.bound} | {ratio:.2f} | {met} | {cpu} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
