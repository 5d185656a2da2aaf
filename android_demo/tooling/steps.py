"""Runs commands and reports progress."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BuildError", "run", "step"]


class BuildError(Exception):
    """The build failed; the message says what was expected, what was received, what to do."""


def run(*command: str | Path, failure: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command and returns its output; an error message ends with the last lines."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        lines = "\n".join(done.stdout.splitlines()[-40:])
        raise BuildError(f"{failure} ({Path(command[0]).name}, exit {done.returncode}):\n{lines}")
    return done.stdout


@contextmanager
def step(text: str) -> Iterator[None]:
    """Prints the step and how long it took."""
    print(f"{text} ...", end=" ", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - start:.1f} s", flush=True)
