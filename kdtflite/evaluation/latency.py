"""How long one invoke takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.evaluation.arena import arena_bytes
from kdtflite.evaluation.machine import count_usable_cores, describe_machine
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.lite.tensors import TensorSpec
from kdtflite.progress import track
from kdtflite.results import Axes, Result, Table, make_axes, make_table

__all__ = ["MINIMUM_INVOKES", "Benchmark", "Latency", "benchmark", "count_delegated_operators"]

# A 99th percentile of fewer than 200 values is the largest or second largest of them: noise.
MINIMUM_INVOKES = 200
_MOST_THREADS = 1024


@dataclass(frozen=True, eq=False)
class Latency:
    """Latency of one invoke with a number of threads, in milliseconds.

    Attributes:
        threads: Threads inside the invoke.
        milliseconds: Every timed invoke in order, shape (invokes,), float64.
        delegate: "XNNPACK" or "none", as found in the running interpreter.
        delegated: Operators that the delegate took.
        operators: Operators in the file.
    """

    threads: int
    milliseconds: np.ndarray = field(repr=False)
    delegate: str
    delegated: int
    operators: int

    @property
    def p50(self) -> float:
        """Median."""
        return float(np.percentile(self.milliseconds, 50))

    @property
    def p90(self) -> float:
        """90th percentile."""
        return float(np.percentile(self.milliseconds, 90))

    @property
    def p99(self) -> float:
        """99th percentile."""
        return float(np.percentile(self.milliseconds, 99))

    @property
    def mean(self) -> float:
        """Mean."""
        return float(self.milliseconds.mean())

    @property
    def minimum(self) -> float:
        """Fastest invoke."""
        return float(self.milliseconds.min())

    def to_dict(self) -> dict[str, Any]:
        """Returns the percentiles as plain values for JSON."""
        return {
            "threads": self.threads,
            "invokes": len(self.milliseconds),
            "p50_ms": self.p50,
            "p90_ms": self.p90,
            "p99_ms": self.p99,
            "mean_ms": self.mean,
            "min_ms": self.minimum,
            "delegate": self.delegate,
            "delegated_operators": self.delegated,
            "operators": self.operators,
        }


@dataclass(frozen=True, eq=False)
class Benchmark(Result):
    """Latency, size and memory of a file on one machine.

    Attributes:
        latencies: One entry per number of threads, in the order asked for.
        file_bytes: Size of the file.
        arena_bytes: Memory for intermediate results with the built-in kernels; see
            `kdtflite.evaluation.arena_bytes`.
        warmup: Untimed invokes before the timed ones.
        machine: Processor, architecture, cores, operating system and LiteRT version.
    """

    latencies: tuple[Latency, ...]
    file_bytes: int
    arena_bytes: int
    warmup: int
    machine: dict[str, Any]

    def to_table(self) -> Table:
        """Returns the latencies as a rich table with one row per number of threads."""
        rows = []
        for latency in self.latencies:
            values = (latency.p50, latency.p90, latency.p99, latency.mean, latency.minimum)
            delegate = latency.delegate
            if latency.delegated:
                delegate += f" ({latency.delegated} of {latency.operators} ops)"
            milliseconds = (f"{value:.4g}" for value in values)
            invokes = str(len(latency.milliseconds))
            rows.append((str(latency.threads), *milliseconds, invokes, delegate))
        times = ("p50 ms", "p90 ms", "p99 ms", "mean ms", "min ms")
        return make_table(rows, numbers=("threads", *times, "invokes"), notes=["delegate"])

    def summary(self) -> str:
        """Returns machine, size and memory as one line of text."""
        machine = self.machine
        return (
            f"{machine['cpu']} ({machine['architecture']}, {machine['cores']} cores), "
            f"{machine['os']}, LiteRT {machine['litert']}; file {self.file_bytes:,} bytes, "
            f"arena {self.arena_bytes:,} bytes"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the share of invokes done within a time, one curve per number of threads.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        ax = make_axes(ax, 6, 4, xlabel="latency (ms)", ylabel="share of invokes")
        for latency in self.latencies:
            times = np.sort(latency.milliseconds)
            share = np.arange(1, len(times) + 1) / len(times)
            name = f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
            ax.step(times, share, where="post", label=f"{name}, p50 {latency.p50:.3g} ms")
        ax.set_xscale("log")
        ax.set_ylim(0, 1)
        ax.legend()
        return ax


@check_arguments
def benchmark(
    lite: Any,
    *,
    threads: int | Sequence[int] | None = None,
    warmup: int = 20,
    invokes: int = 200,
    xnnpack: bool = True,
    data: Any = None,
    progress: bool = True,
) -> Benchmark:
    """Times single invokes of a file at its own batch size, without copying data in or out.

    Args:
        lite: A LiteModel, the bytes of a `.tflite`, or its path.
        threads: A number of threads to time, or several; by default 1 and all usable cores.
        warmup: Untimed invokes before the timed ones, to fill caches and raise the clock.
        invokes: Timed invokes, at least 200: a 99th percentile of fewer is noise.
        xnnpack: Use LiteRT's default delegate; False times the built-in kernels.
        data: Samples to run on, shape (samples, ...) or a dict of them by input name; the first
            ones are taken. By default seeded random values: they hardly change the time.
        progress: Show progress.

    Returns:
        The latencies, one entry per number of threads, with the file's size and the machine.

    Raises:
        ConfigurationError: Fewer than 200 invokes, a negative warm-up or no threads.
        DataError: `data` does not fit the file's inputs.
        ModelFileError: LiteRT refuses the file.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> lite = kdtflite.convert(model, target="float32")
        >>> speed = kdtflite.benchmark(lite, threads=[1], progress=False)
        >>> speed.latencies[0].p50 < 1000  # milliseconds
        True
    """
    lite = as_lite_model(lite)
    if invokes < MINIMUM_INVOKES:
        raise ConfigurationError(
            f"Expected at least {MINIMUM_INVOKES} timed invokes, as p99 is stated. "
            f"Received: invokes={invokes}."
        )
    if warmup < 0:
        raise ConfigurationError(f"Expected `warmup` from 0 up. Received: {warmup}.")
    counts = _list_threads(threads)
    values = _make_inputs(lite, data)
    latencies = tuple(
        _time(lite, values, count, warmup, invokes, xnnpack, quiet=not progress) for count in counts
    )
    return Benchmark(latencies, len(lite.content), arena_bytes(lite), warmup, describe_machine())


def count_delegated_operators(interpreter: Any) -> tuple[int, int]:
    """Returns how many operators the delegate took, and how many the file has.

    The interpreter lists the file's operators and, after them, one DELEGATE node for each part
    that it handed over. A part is all operators between a node's inputs and its outputs.
    """
    details = interpreter._get_ops_details()
    nodes = [op for op in details if op["op_name"] == "DELEGATE"]
    operators = [op for op in details if op["op_name"] != "DELEGATE"]
    producer = {int(i): n for n, op in enumerate(operators) for i in op["outputs"]}
    taken: set[int] = set()
    for node in nodes:
        given = {int(i) for i in node["inputs"]}
        wanted = [int(i) for i in node["outputs"]]
        while wanted:
            tensor = wanted.pop()
            number = producer.get(tensor)
            if tensor in given or number is None or number in taken:
                continue
            taken.add(number)
            wanted += [int(i) for i in operators[number]["inputs"]]
    return len(taken), len(operators)


def _list_threads(threads: Any) -> tuple[int, ...]:
    if threads is None:
        threads = (1, count_usable_cores())
    given = [threads] if isinstance(threads, int | np.integer | str) else threads
    counts = tuple(given) if isinstance(given, Iterable) else ()
    if not counts or any(
        isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= _MOST_THREADS
        for n in counts
    ):
        raise ConfigurationError(
            f"Expected `threads` as whole numbers from 1 to {_MOST_THREADS}, one or several. "
            f"Received: {threads!r}."
        )
    # dict.fromkeys: on a single core 1 and "all" are the same run.
    return tuple(dict.fromkeys(map(int, counts)))


def _make_inputs(lite: LiteModel, data: Any) -> dict[int, np.ndarray]:
    random = np.random.default_rng(0)
    if data is None:
        return {spec.index: _draw_random(spec, random) for spec in lite.inputs}
    by_name = data if isinstance(data, Mapping) else {lite.inputs[0].name: data}
    values = {}
    for spec in lite.inputs:
        value = np.asarray(by_name.get(spec.name, ()))[: spec.shape[0]]
        if value.shape != spec.shape:
            raise DataError(
                f"Expected at least {spec.shape[0]} samples of shape {spec.shape[1:]} for the "
                f"input {spec.name!r}. Received: {value.shape} (given names: "
                f"{', '.join(map(str, by_name))})."
            )
        values[spec.index] = spec.quantize(value)
    return values


def _draw_random(spec: TensorSpec, random: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if spec.scale is not None and np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return random.integers(info.min, info.max, spec.shape, dtype, endpoint=True)
    if np.issubdtype(dtype, np.floating):
        return random.random(spec.shape).astype(dtype)
    # Token ids: 0 is the one that every vocabulary has.
    return np.zeros(spec.shape, dtype)


def _time(
    lite: LiteModel,
    values: dict[int, np.ndarray],
    threads: int,
    warmup: int,
    invokes: int,
    xnnpack: bool,
    *,
    quiet: bool,
) -> Latency:
    interpreter = lite.interpreter(threads=threads, xnnpack=xnnpack)
    for index, value in values.items():
        interpreter.set_tensor(index, value)
    for _ in range(warmup):
        interpreter.invoke()
    nanoseconds = np.empty(invokes, np.int64)
    clock = time.perf_counter_ns
    # In chunks, so that the bar is drawn between timed invokes and hardly ever.
    chunks = np.array_split(np.arange(invokes), max(1, invokes // 50))
    for chunk in track(chunks, f"Timing, {threads} threads", quiet=quiet):
        for number in chunk:
            start = clock()
            interpreter.invoke()
            nanoseconds[number] = clock() - start
    taken, operators = count_delegated_operators(interpreter)
    return Latency(threads, nanoseconds / 1e6, "XNNPACK" if taken else "none", taken, operators)
