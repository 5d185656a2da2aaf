"""What becomes of damaged .tflite files: thousands of mutants through kdtflite's own interface.

    python benchmarks/mutants.py --count 20000 --models android_demo/models

Each mutant is loaded, described, searched for floats, measured and run, as a user does in a
notebook: without a sandbox of the benchmark's own. Batches run in worker processes, so that a
death is seen, counted and attributed. Every mutant follows from the seed and its number alone, and
each finished one is a line of a .jsonl file beside the result: the same command continues where it
was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import queue
import random
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mutations import KINDS, mutate

from kdtflite.evaluation.machine import describe_machine
from kdtflite.files import write_json, write_text

RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "mutants.json"
SAMPLES = 9
_WRONG = {
    "deaths": "deaths of the process",
    "timeouts": "that did not end",
    "foreign": "errors that are not kdtflite's",
}


def make_mutant(options: Any, number: int) -> tuple[str, str, bytes]:
    """Returns the file, the kind and the bytes of one mutant."""
    draw = random.Random(f"{options.seed} {number}")
    path = draw.choice(options.files)
    kind = options.kind[number % len(options.kind)]
    return path.name, kind, mutate(path.read_bytes(), draw, kind)


def use(content: bytes) -> str:
    """Does with a file what a notebook does; returns "ran", or the error that stopped it."""
    import numpy as np

    from kdtflite.conversion.integer_proof import find_floats
    from kdtflite.errors import KdtfliteError
    from kdtflite.evaluation.arena import arena_bytes
    from kdtflite.evaluation.multiply_accumulates import count_file_macs
    from kdtflite.lite import LiteModel

    draw = np.random.default_rng(0)
    try:
        lite = LiteModel(content)
        _ = lite.summary(), repr(lite), lite.metadata, find_floats(lite)
        given = {spec.name: make_samples(spec, draw) for spec in lite.inputs}
        lite.predict(given)
        lite.predict(given, xnnpack=False)
        count_file_macs(lite)
        arena_bytes(lite)
    except KdtfliteError as error:
        return f"{type(error).__name__}: {error}"
    return "ran"


def make_samples(spec: Any, draw: Any) -> Any:
    """Returns samples for an input: fewer if the file claims a huge one, so that memory is its."""
    import numpy as np

    shape = (SAMPLES if math.prod(spec.shape[1:]) < 2**20 else 1, *spec.shape[1:])
    if spec.scale is not None or spec.dtype.startswith("float"):
        return draw.standard_normal(shape, np.float32)
    # Nobody has a value for a "resource".
    return np.zeros(shape, np.sctypeDict.get(spec.dtype, "float32"))


def work(options: Any) -> None:
    """Tries the mutants whose numbers stdin gives; prints a line of JSON for each."""
    for line in sys.stdin:
        number = int(line)
        name, kind, content = make_mutant(options, number)
        _reset_peak()
        start = time.monotonic()
        try:
            outcome = use(content)
        except Exception as error:  # what the benchmark looks for
            outcome = f"FOREIGN {type(error).__name__}: {error}"
        found = {
            "number": number,
            "file": name,
            "kind": kind,
            "outcome": outcome[:300],
            "seconds": round(time.monotonic() - start, 3),
            "peak_mb": _read_peak() >> 20,
        }
        print(json.dumps(found), flush=True)


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _read_peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Worker(threading.Thread):
    """Feeds one process at a time with numbers, and notes what becomes of it."""

    def __init__(self, options: Any, todo: queue.SimpleQueue[int], done: Any) -> None:
        super().__init__(daemon=True)
        self.options, self.todo, self.done = options, todo, done
        self.process: Any = None

    def run(self) -> None:
        """Works until no numbers are left."""
        while True:
            try:
                number = self.todo.get_nowait()
            except queue.Empty:
                break
            if self.process is None:
                self.process = self._start()
            late = threading.Timer(self.options.seconds, self.process.kill)
            late.start()
            started = time.monotonic()
            try:
                self.process.stdin.write(f"{number}\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except OSError:
                line = ""
            late.cancel()
            if line:
                self.done.put(json.loads(line))
                continue
            code, taken = self.process.wait(), time.monotonic() - started
            self.process = None
            kind = "TIMEOUT" if taken >= self.options.seconds else f"DEATH by signal {-code}"
            name, how, _ = make_mutant(self.options, number)
            self.done.put(
                {"number": number, "file": name, "kind": how, "outcome": kind}
                | {"seconds": round(taken, 3), "peak_mb": 0}
            )
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()

    def _start(self) -> Any:
        command = [sys.executable, __file__, "--work", "--models", str(self.options.models)]
        return subprocess.Popen(
            [*command, "--seed", str(self.options.seed), "--kind", *self.options.kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def summarize(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the outcomes by kind, and an example of each that must not be."""
    table: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    examples: dict[str, Any] = {}
    for each in found:
        outcome = each["outcome"]
        first = outcome.split(":")[0] if outcome.startswith("FOREIGN") else outcome.split()[0]
        table[each["kind"]][first.rstrip(":")] += 1
        if outcome.startswith(("FOREIGN", "DEATH", "TIMEOUT")):
            examples.setdefault(f"{first} {outcome[:60]}", each)
    return {
        "mutants": len(found),
        "outcomes": {kind: dict(counts) for kind, counts in table.items()},
        "deaths": sum(e["outcome"].startswith("DEATH") for e in found),
        "timeouts": sum(e["outcome"].startswith("TIMEOUT") for e in found),
        "foreign": sum(e["outcome"].startswith("FOREIGN") for e in found),
        "largest_peak_mb": max((e["peak_mb"] for e in found), default=0),
        "longest_seconds": max((e["seconds"] for e in found), default=0),
        "examples": list(examples.values()),
    }


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--models", type=Path, default=Path("android_demo/models"))
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="limit of one mutant")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.files = sorted(options.models.glob("*.tflite"))
    if options.work:
        work(options)
        return
    files = [path.name for path in options.files]
    for path in options.files:
        assert use(path.read_bytes()) == "ran", f"{path} itself does not run"
    lines = options.json.with_suffix(".jsonl")
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    finished = {each["number"] for each in found}
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for number in range(options.count):
        if number not in finished:
            todo.put(number)
    left, start = todo.qsize(), time.monotonic()
    for _ in range(options.workers):
        Worker(options, todo, done).start()
    with lines.open("a") as log:
        for i in range(left):
            each = done.get()
            found.append(each)
            log.write(json.dumps(each) + "\n")
            log.flush()
            if each["outcome"].startswith(("FOREIGN", "DEATH", "TIMEOUT")):
                print(each, flush=True)
            if (i + 1) % 100 == 0:
                rate = (i + 1) / (time.monotonic() - start)
                print(f"{len(found):,} of {options.count:,}, {rate:.1f} per second", flush=True)
    summary = {"machine": describe_machine(), "files": files, **summarize(found)}
    write_json(options.json, summary, overwrite=True)
    write_text(options.json.with_suffix(".md"), as_markdown(summary), overwrite=True)
    print(as_markdown(summary), end="")


def as_markdown(summary: dict[str, Any]) -> str:
    """Returns the outcomes as a table."""
    wrong = [f"{summary[key]} {what}" for key, what in _WRONG.items()]
    lines = [
        "# Damaged files",
        "",
        f"`python benchmarks/mutants.py --count {summary['mutants']} --models FOLDER`: mutants of",
        f"{', '.join(summary['files'])}. Each is loaded,",
        "described and run through the Python interface: it is refused with one of kdtflite's",
        "errors, or runs.",
        "",
        f"Of {summary['mutants']:,}: {', '.join(wrong)}. The most memory of the calling process: "
        f"{summary['largest_peak_mb']:,} MB; the longest: {summary['longest_seconds']:.0f} s.",
        "",
        "| kind | refused | ran | wrong |",
        "|---|---|---|---|",
    ]
    for kind, counts in summary["outcomes"].items():
        ran, refused = (
            counts.get("ran", 0),
            sum(n for k, n in counts.items() if k.endswith("Error")),
        )
        lines.append(f"| {kind} | {refused} | {ran} | {sum(counts.values()) - ran - refused} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
