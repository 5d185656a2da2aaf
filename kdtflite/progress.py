"""Progress of long work: a bar on a terminal, otherwise one line every few seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator, Sized
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kdtflite.text import escape_controls

__all__ = ["console", "log_to", "mute", "say", "track"]

T = TypeVar("T")

# Progress goes to stderr: stdout belongs to results (`--json | jq`).
console = Console(stderr=True)

_SECONDS_BETWEEN_LINES = 5.0

_logs: list[Path] = []
_mutes: list[None] = []


def say(message: str) -> None:
    """Prints one line of progress, and appends it to the log files that are open."""
    if _mutes:
        return
    message = escape_controls(message)
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    for log in _logs:
        with open(log, "a") as file:
            file.write(f"{datetime.now().isoformat(timespec='seconds')} {message}\n")


@contextlib.contextmanager
def mute() -> Iterator[None]:
    """Suppresses progress messages while the block runs, for trials whose result is discarded."""
    _mutes.append(None)
    try:
        yield
    finally:
        _mutes.pop()


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
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
) -> Generator[T, None, None]:
    """Yields `items` while showing how many are done.

    Args:
        items: The items to work through.
        description: The label of the bar.
        total: The number of items; `len(items)` if it has a length and this is None.
        quiet: Show nothing.
        bar_only: Show nothing if there is no terminal for a bar.
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
        # From the first item on, so that preparation (starting a process) does not count as work.
        last = time.monotonic() if last is None else last
        yield item
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{description}: {done}" + (f" of {total}" if total else ""))
