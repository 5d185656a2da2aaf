"""Tries a file in another process before this one runs it.

LiteRT's kernels trust a file: where it is wrong they end the process, hang, or take all memory.
`read_file` finds most damage. What it cannot find ends a child process here, not the notebook.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdtflite.errors import ModelFileError
from kdtflite.forking import ForkServer, Outcome
from kdtflite.progress import say

__all__ = ["KERNEL_SETS", "Trial", "share_trust", "trust", "try_file", "try_kernel_sets"]

KERNEL_SETS = ("XNNPACK", "built-in", "reference")
"""LiteRT's kernel sets: its default delegate, those behind it, and plain, slow ones."""

# Time of the processor for the first run, and memory beside four times the file's size.
_SECONDS = 20
_MEMORY = 2 << 30

Key = tuple[Any, ...]
# By kernel set: why LiteRT refuses the file, or "", and a digest of its outputs, or "".
Answers = dict[str, tuple[str, str]]
_answers: dict[Key, tuple[Outcome, Answers]] = {}
_trusted: set[Key] = set()


@dataclass(frozen=True)
class Trial:
    """What another process found of a file.

    Attributes:
        refusal: Why LiteRT refuses the file; "" if it ran, or was not tried.
        memory: The most bytes that the process had in memory; 0 if it was not tried.
        outputs: A digest of its outputs; "" if it did not run, or nobody asked for them.
    """

    refusal: str = ""
    memory: int = 0
    outputs: str = ""


def trust(content: bytes) -> None:
    """Lets this process run a file that no other process has tried."""
    _trusted.add(_identify(content))


def share_trust(content: bytes, copy: bytes) -> None:
    """Lets this process run `copy`, which holds the same model, if it may run `content`."""
    if _identify(content) in _trusted:
        trust(copy)


def try_file(
    content: bytes,
    *,
    xnnpack: bool,
    keep_tensors: bool = False,
    resize: Sequence[tuple[int, Sequence[int]]] = (),
) -> Trial:
    """Runs a file in another process, the first time it is to be run in this way.

    It runs once on zeros and once on random values, within 20 seconds of processor time and 2 GB
    beside four times the file's size. A file that LiteRT refuses with an error passes: here, too,
    it will be an error. It takes a few milliseconds more than the two runs, and 0.2 s for the first
    file of a process.

    Args:
        content: The file; its structure is sound.
        xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.
        keep_tensors: Keep the values of every tensor.
        resize: Index and new shape of each input to resize.

    Raises:
        ModelFileError: The other process crashed or reached a limit.
    """
    if _identify(content) in _trusted:
        return Trial()
    shapes = tuple((int(index), tuple(map(int, shape))) for index, shape in resize)
    key = (*_identify(content), xnnpack, keep_tensors, shapes)
    name = KERNEL_SETS[0 if xnnpack else 1]
    if key not in _answers:
        _answers[key] = _try(content, (name,), keep_tensors=keep_tensors, resize=shapes)
    outcome, answers = _answers[key]
    problem = _describe(outcome)
    if problem:
        raise ModelFileError(problem)
    return Trial(answers[name][0], outcome.memory)


def try_kernel_sets(content: bytes) -> dict[str, Trial]:
    """Runs a file in another process with each kernel set, on zeros and on other values.

    The limits are those of `try_file`. A kernel set that reaches one, or ends the process, refuses
    the file. Trusted files run there, too.

    Args:
        content: The file; its structure is sound.

    Returns:
        What became of it, by kernel set, with a digest of the outputs.
    """
    keys = {name: (*_identify(content), "compare", name) for name in KERNEL_SETS}
    if keys[KERNEL_SETS[0]] not in _answers:
        together = _try(content, KERNEL_SETS, compare=True)
        for name, key in keys.items():
            # If one of them cannot run it, the others may.
            failed = _describe(together[0])
            _answers[key] = _try(content, (name,), compare=True) if failed else together
        for name, xnnpack in zip(KERNEL_SETS, (True, False), strict=False):
            _answers.setdefault((*_identify(content), xnnpack, False, ()), _answers[keys[name]])
    found = {}
    for name, key in keys.items():
        outcome, answers = _answers[key]
        problem = _describe(outcome)
        refusal, outputs = (problem, "") if problem else answers[name]
        found[name] = Trial(refusal, outcome.memory, outputs)
    return found


def _identify(content: bytes) -> Key:
    # Python keeps the hash of bytes with them, so this is free from the second time on.
    return hash(content), len(content)


def _try(
    content: bytes,
    kernels: Sequence[str],
    *,
    compare: bool = False,
    keep_tensors: bool = False,
    resize: Sequence[Any] = (),
) -> tuple[Outcome, Answers]:
    """Returns how the trial of a file ended, and what each kernel set made of it."""
    job = {
        "kernels": kernels,
        "compare": compare,
        "keep_tensors": keep_tensors,
        "resize": resize,
        "seconds": _SECONDS,
        "memory": _MEMORY + 4 * len(content),
    }
    untried = {name: ("", "") for name in kernels}
    sent: list[str] = []
    try:
        outcome = _server.run(job, content, sent.append)
    except OSError as error:
        say(f"No process can be started to try files first ({error}); they run untried.")
        return Outcome(0), untried
    if outcome.log is not None:
        raise ModelFileError(
            "The process that tries files before they run here ended without an answer. The "
            "system may be out of memory. If you trust the file, load it with "
            "LiteModel.load(path, sandbox=False)."
        )
    answers = json.loads("".join(sent)) if sent else []
    return outcome, {**untried, **dict(zip(kernels, map(tuple, answers), strict=False))}


def _describe(outcome: Outcome) -> str:
    trusting = "If you trust it, load it with LiteModel.load(path, sandbox=False)."
    if outcome.limit:
        limit = f"{_SECONDS} seconds" if outcome.limit == "time" else f"{_MEMORY >> 30} GB"
        return f"One run of this file takes over {limit}. It is damaged, or very large. {trusting}"
    if outcome.code < 0:
        return (
            f"LiteRT crashes on this file ({signal.Signals(-outcome.code).name}). It is damaged "
            "in a way that no kernel checks; copy it again or convert the model again. " + trusting
        )
    return ""


def _strengthen() -> dict[str, str]:
    """Returns the environment in which a trial finds more: what is written past its memory.

    There glibc checks every block that is freed, and fills those that are taken; where it cannot,
    it says so on stderr and goes on.
    """
    checks = "glibc.malloc.check=3:glibc.malloc.perturb=165"
    library = "libc_malloc_debug.so.0"  # which has the checks since glibc 2.34
    return {
        "LD_PRELOAD": " ".join(filter(None, (os.environ.get("LD_PRELOAD"), library))),
        "GLIBC_TUNABLES": ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), checks))),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


_server = ForkServer("kdtflite.lite.trial_server", _strengthen)
