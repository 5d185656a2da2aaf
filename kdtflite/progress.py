"""Progress for whatever takes over a second: a bar on a terminal, a line a step otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["console", "logged_to", "say", "track"]

T = TypeVar("T")

# Progress goes to stderr: stdout belongs to results (`--json | jq`).
console = Console(stderr=True)

_SECONDS_BETWEEN_LINES = 5.0


_logs: list[Path] = []


def say(message: str) -> None:
    """Prints one line of progress, and appends it to the log files that are open."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    for log in _logs:
        with open(log, "a") as file:
            file.write(f"{datetime.now().isoformat(timespec='seconds')} {message}\n")


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Appends every line of progress to the file `path` while the block runs."""
    _logs.append(path)
    try:
        yield
    finally:
        _logs.remove(path)


def track(
    items: Iterable[T],
    description: str,
    *,
    total: int | None = None,
    quiet: bool = False,
    bar_only: bool = False,
) -> Iterator[T]:
    """Yields `items` while showing how many are done.

    Args:
        items: What is worked through.
        description: What is being done, as the bar's label.
        total: How many items there are; taken from `len(items)` where it has one.
        quiet: Show nothing.
        bar_only: Show nothing where there is no terminal for a bar.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if quiet or (bar_only and not console.is_terminal):
        yield from items
        return
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield from progress.track(items, total=total, description=description)
        return
    last: float | None = None
    for done, item in enumerate(items, start=1):
        # From the first item on: getting ready (a process that starts) is no step of the work.
        last = time.monotonic() if last is None else last
        yield item
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{description}: {done}" + (f" of {total}" if total else ""))
