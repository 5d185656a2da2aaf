"""Work in another process, which may crash, hang or take all memory there.

A `ForkServer` starts a process on its first job. That process imports what it needs once, and
forks a child per job with `serve`, so that a job costs milliseconds and its end ends nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ForkServer", "Outcome", "serve"]

Job = dict[str, Any]
_SECONDS_BETWEEN_LOOKS = 0.02
# Beyond the time of the processor: a job that waits for something is stopped, too.
_WALL_FACTOR = 3
_PR_SET_PDEATHSIG = 1  # of prctl: the signal to get when the parent dies


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        code: Its exit code; below 0 the signal that ended it.
        limit: The limit that it reached: "time", "memory" or "".
        memory: The most bytes that it had in memory.
        log: What the process itself wrote to stderr, if that ended and not the job alone.
    """

    code: int
    limit: str = ""
    memory: int = 0
    log: str | None = None


class ForkServer:
    """A process that takes one job after the other, started when it is needed.

    It is started again if it has ended, ends with this process, and is left to the parent in a
    fork.

    Args:
        module: The module to run, which calls `serve`.
        change: Returns variables that are added to its environment.
    """

    def __init__(self, module: str, change: Callable[[], Mapping[str, str]] = dict) -> None:
        self.module = module
        self.change = change
        self._process: subprocess.Popen[bytes] | None = None
        self._forget()
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    @property
    def pid(self) -> int | None:
        """Process ID of the server; None while it is not running."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the process if none is waiting: it imports while the caller goes on.

        Raises:
            OSError: The system starts no process.
        """
        with self._lock:
            self._start()

    def run(
        self, job: Job, content: bytes = b"", listen: Callable[[Any], object] | None = None
    ) -> Outcome:
        """Runs a job, after those that other threads have begun.

        Args:
            job: Plain values. "seconds" (of the processor) and "memory" (bytes) are its limits.
            content: Bytes to hand over with them.
            listen: Is called with whatever the job sends.

        Raises:
            OSError: The system starts no process.
        """
        head = json.dumps({**job, "size": len(content)}).encode() + b"\n"
        with self._lock:
            for _ in range(2):  # it may have ended since its last job
                process = self._start()
                started = False
                try:
                    for kind, value in self._talk(process, head + content):
                        started = True
                        if kind == "ended":
                            return Outcome(**value)
                        if kind == "sent" and listen is not None:
                            listen(value)
                    code = process.wait()
                except BaseException:  # Ctrl-C: the answer to this job must not meet the next one
                    self.stop()
                    raise
                self._log.seek(0)
                log = self._log.read().decode(errors="replace")
                self.stop()
                if started:
                    break
        return Outcome(code or 1, log=log)

    def stop(self) -> None:
        """Ends the process and the job that it may be running; the next job starts it again."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        _close(process)
        process.wait()

    def make_environment(self) -> dict[str, str]:
        """Returns the environment of the process as it would be started now."""
        # What this process can import, in the same order; last, where it found kdtflite.
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([*filter(None, sys.path), root])
        return {**os.environ, "PYTHONPATH": path, **self.change()}

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=self.make_environment(),
                start_new_session=True,  # Ctrl-C ends this process, which ends the other
            )
        return self._process

    @staticmethod
    def _talk(process: subprocess.Popen[bytes], data: bytes) -> Iterator[tuple[str, Any]]:
        """Hands over a job; yields the kind and value of each answer."""
        assert process.stdin is not None
        assert process.stdout is not None
        left = memoryview(data)
        with contextlib.suppress(BrokenPipeError):
            while left:
                left = left[process.stdin.write(left) :]
        while line := process.stdout.readline():
            try:
                kind, value = json.loads(line)
            except (ValueError, TypeError):
                continue  # printed by whatever Python runs before the module
            yield kind, value

    def _forget(self) -> None:
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            _close(process)  # or it would outlive its parent as long as this fork lives


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def serve(
    work: Callable[[Job, bytes, Callable[[Any], None]], int],
    *,
    forks: bool = hasattr(os, "fork"),
    idle: float | None = None,
    abandon: Callable[[Job], object] | None = None,
) -> None:
    """Takes jobs from stdin until it ends, each in a child of its own.

    Args:
        work: Does a job, given what `ForkServer.run` was given and a function that sends a plain
            value to its `listen`; returns an exit code.
        forks: Whether this process can be forked; if not, it does one job, without limits, and
            ends.
        idle: Seconds without a job after which to end.
        abandon: Is called with the job that is running when the caller ends.
    """
    jobs = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(kind: str, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            answers.write(json.dumps([kind, value]).encode() + b"\n")

    while not forks or select.select([jobs], [], [], idle)[0]:
        line = jobs.readline()
        if not line:
            return
        job = json.loads(line)
        content = jobs.read(job["size"])
        answer("started", None)

        def do(job: Job = job, content: bytes = content) -> int:
            return work(job, content, lambda value: answer("sent", value))

        if not forks:
            answer("ended", {"code": do()})
            return
        ended = _run_in_child(do, job)
        if ended is None:
            if abandon is not None:
                abandon(job)
            return
        answer("ended", ended)


def _run_in_child(do: Callable[[], int], job: Job) -> dict[str, Any] | None:
    """Runs a job in a fork; returns the values of an Outcome, or None if the caller has ended."""
    alive, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(alive)
            _limit(job)
            code = do()
        finally:
            os._exit(code)
    os.close(writing)  # the child alone has that end: it closes when the child ends, however
    limit = _watch(child, alive, job)
    os.close(alive)
    if limit:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        limit = "time"
    if limit == "caller":
        return None
    return {"code": code, "limit": limit, "memory": used.ru_maxrss * 1024}


def _watch(child: int, alive: int, job: Job) -> str:
    """Waits for the end of a child; returns the limit that it reaches before, if any."""
    seconds, memory = job.get("seconds"), job.get("memory")
    deadline = None if seconds is None else time.monotonic() + _WALL_FACTOR * seconds
    while True:
        # Nothing but its end is to be read from stdin before the job is done: the caller is gone.
        ready = select.select([alive, sys.stdin.buffer], [], [], _SECONDS_BETWEEN_LOOKS)[0]
        if alive in ready:
            return ""
        if ready:
            return "caller"
        if deadline is not None and time.monotonic() > deadline:
            return "time"
        if memory is not None and _read_memory(child) > memory:
            return "memory"


def _read_memory(process: int) -> int:
    """Returns the bytes that a process has in memory."""
    try:
        with open(f"/proc/{process}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0  # it has just ended


def _limit(job: Job) -> None:
    """Lets this process end with its parent, and at its limit of the processor's time."""
    import ctypes
    import resource

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if "seconds" not in job:
        return
    # Memory is watched from outside: under a limit of the system LiteRT may call a file wrong.
    for what, limit in ((resource.RLIMIT_CPU, job["seconds"]), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(what)[1]
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(what, (limit, hard))
