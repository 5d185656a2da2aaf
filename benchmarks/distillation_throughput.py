"""Measures how many images per second a student trains on, with each kind of teacher.

    python benchmarks/distillation_throughput.py

One student is trained alone (plain tf_keras), with a live teacher and with a cached teacher, each
with and without quantization-aware training. Keras 3's own `keras.distillation.Distiller` trains
the same two networks with the same weights, batches and losses, with XLA (its default) and without.
Each way is one long `fit` in its own process, so that its memory can be measured, and waits for its
turn before every epoch. So the epochs of all ways are interleaved, a slow minute affects all of
them, and each timed epoch belongs to a training that is warmed up. The figures are medians over the
rounds: of the speeds, and of each round's ratios. Peak memory does not include what the process
held after imports and data.
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
    """Two networks of `kdtflite.models.build_model`, and the number of images they get."""

    shape: tuple[int, int, int]
    teacher: tuple[str, tuple[int, ...]]
    student: tuple[str, tuple[int, ...]]
    batch: int
    steps: int  # per epoch: enough that the start of an epoch matters little

    @property
    def images(self) -> int:
        """Images per epoch."""
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
    """How fast a way should be compared with others, or how little memory it should use."""

    way: str
    others: tuple[str, ...]
    bound: float  # a minimum for speeds, a maximum for memory
    memory: bool = False

    def __str__(self) -> str:
        what = "memory of " if self.memory else ""
        return f"{what}{self.way} / {' + '.join(self.others)}"

    def compute_ratio(self, seconds: dict[str, list[float]], memory: dict[str, float]) -> float:
        """Returns the ratio; for speeds, the median of the rounds' ratios."""
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
    parser.add_argument("--rounds", type=int, default=9, help="timed epochs per way")
    parser.add_argument("--warm-up", type=int, default=2, help="epochs before the timed ones")
    parser.add_argument(
        "--quick", action="store_true", help="only a few steps, to check that everything runs"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="the result; its table is written next to it"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.warm_up < 1:
        parser.error("--rounds and --warm-up must be at least 1")
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
    """Returns the seconds of every epoch of every way, its peak memory, and all ratios."""
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
            other.close()  # so that the death of a worker ends the pipe here
            at_the_end.callback(process.join)
            at_the_end.callback(process.terminate)
        try:
            for _ in range(warm_up):
                for worker in workers.values():
                    worker.send("go")
                for worker in workers.values():
                    worker.recv()
            for number in range(rounds):
                # A different way goes first each time.
                first = number % len(WAYS)
                for way in WAYS[first:] + WAYS[:first]:
                    workers[way].send("go")
                    wall, cpu = workers[way].recv()
                    seconds[way].append(wall)
                    cpu_seconds[way].append(cpu)
                say(f"{name}: round {number + 1} of {rounds}")
            memory = {way: worker.recv() for way, worker in workers.items()}
        except (EOFError, OSError):
            raise SystemExit(f"{name}: a process ended too early; its error is above.") from None
    return {
        **asdict(case),
        "images_per_second": {w: case.images / statistics.median(s) for w, s in seconds.items()},
        "peak_memory_mb": memory,
        "ratios": {str(t): t.compute_ratio(seconds, memory) for t in TARGETS},
        "ratios_of_cpu_time": {str(t): t.compute_ratio(cpu_seconds, memory) for t in TARGETS},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def prepare(case: Case, folder: Path) -> None:
    """Writes both networks and the teacher's outputs, which every way reads."""
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
    kdtflite.cache_teacher(teacher, make_data(case), folder / "cache")


def work(connection: Connection, way: str, case: Case, folder: Path, epochs: int) -> None:
    """Trains in one way, in its own process; waits for its turn before every epoch."""
    turns = Turns(connection)
    run = run_keras3 if way in (KERAS3, KERAS3_NO_XLA) else run_tf_keras
    run(way, case, folder, turns, epochs)
    turns.end()
    connection.send((measure_peak_memory() - turns.memory_at_first) / 2**20)


class Turns:
    """Takes turns with the other workers, one epoch each, and reports the time of each epoch."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.started: tuple[float, float] | None = None
        self.memory_at_first = 0

    def start_counting_memory(self) -> None:
        """Counts memory from now on: everything is imported and the data exists."""
        self.memory_at_first = measure_peak_memory()

    def next(self) -> None:
        """Ends an epoch, waits for the next turn, and starts another epoch."""
        self.end()
        self.connection.recv()
        self.started = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Reports the seconds of an epoch: wall time, and CPU time of all cores together."""
        if self.started is not None:
            wall, cpu = self.started
            self.connection.send((time.perf_counter() - wall, time.process_time() - cpu))

    def make_callback(self, base: type) -> Any:
        """Returns a callback of the same Keras as `base`."""

        def on_epoch_begin(self: Any, epoch: int, logs: Any = None) -> None:
            turns.next()

        turns = self
        return type("TakeTurns", (base,), {"on_epoch_begin": on_epoch_begin})()


def run_tf_keras(way: str, case: Case, folder: Path, turns: Turns, epochs: int) -> None:
    """Trains with tf_keras, or runs the teacher alone."""
    import tensorflow as tf
    import tf_keras as keras

    # Imports should not count as memory of a way: every way imports everything, now.
    from kdtflite import Distiller, quantize_aware
    from kdtflite.distillation.losses import SoftTargets
    from kdtflite.distillation.teachers import TeacherCache

    x, y = make_data(case)
    tf.zeros(1)  # starts TensorFlow
    turns.start_counting_memory()
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
    callback = turns.make_callback(keras.callbacks.Callback)
    model.fit(**given, epochs=epochs, verbose=0, callbacks=[callback])


def run_keras3(way: str, case: Case, folder: Path, turns: Turns, epochs: int) -> None:
    """Trains with Keras 3's Distiller."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
        """Reads tf_keras' layer: Keras 3 has no `groups` argument, which is 1."""

        def __init__(self, *, groups: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    x, y = make_data(case)
    tf.zeros(1)  # starts TensorFlow
    turns.start_counting_memory()
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
    callback = turns.make_callback(keras.callbacks.Callback)
    model.fit(x, y, case.batch, epochs, verbose=0, callbacks=[callback])


def make_data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same images and labels every time."""
    random = np.random.default_rng(0)
    images = random.random((case.images, *case.shape), np.float32)
    return images, random.integers(0, CLASSES, case.images)


def measure_peak_memory() -> int:
    """Returns the largest number of bytes that this process has held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def as_markdown(result: dict[str, Any]) -> str:
    machine, versions, cases = result["machine"], result["versions"], result["cases"]
    lines = [
        "# Distillation throughput",
        "",
        f"Medians of {result['rounds']} interleaved epochs per way; {machine['cpu']}, "
        f"{machine['cores']} cores, TensorFlow {versions['tensorflow']}, tf_keras "
        f"{versions['tf_keras']}, Keras {versions['keras']}. Peak memory does not "
        "include what the process holds after imports. Ratios of speeds are medians of the "
        "rounds' ratios; ratios of CPU time (all cores together) are less affected by other "
        "load on the machine.",
    ]
    for name, case in cases.items():
        lines += [
            "",
            f"## {name}",
            "",
            "| way | images/s | ms per step | peak memory, MB |",
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
