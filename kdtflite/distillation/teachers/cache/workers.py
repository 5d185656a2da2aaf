"""Several processes that write one cache together, each its own shards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from kdtflite.errors import ConfigurationError, KdtfliteError
from kdtflite.progress import say

__all__ = ["Workers", "this_worker"]

_PATIENCE = 60.0  # seconds without a sign of life
_BETWEEN_SIGNS = 2.0


def this_worker(worker: tuple[int, int] | None) -> tuple[int, int]:
    """Returns (index, count) of this process among those that write a cache together.

    Args:
        worker: As the user said; None takes it from the tf.distribute strategy in scope.

    Raises:
        ConfigurationError: An index outside the count.
    """
    if worker is None:
        worker = _of_cluster(tf.distribute.get_strategy().cluster_resolver)
    index, count = worker
    if not 0 <= index < count:
        raise ConfigurationError(
            f"Expected worker=(index, count) with an index from 0 to {count - 1}. "
            f"Received: {worker}."
        )
    return index, count


class Workers:
    """Signs of life of the processes that write one cache, as files in its folder.

    Args:
        folder: The cache's.
        worker: (index, count) of this process.
    """

    def __init__(self, folder: Path, worker: tuple[int, int]) -> None:
        self.folder = folder
        self.index, self.count = worker
        self._signed = 0.0

    def has(self, part: int) -> bool:
        """Whether this worker writes a part: every count-th is its own.

        In turns rather than in ranges: a tf.data.Dataset need not know how long it is.
        """
        return part % self.count == self.index

    def sign(self) -> None:
        """Tells the other workers that this one is at work."""
        if self.count > 1 and time.monotonic() - self._signed > _BETWEEN_SIGNS:
            self._signed = time.monotonic()
            (self.folder / f".worker-{self.index}").write_text(str(os.getpid()))

    def wait(self, missing: Callable[[], list[str]]) -> None:
        """Returns when nothing is missing.

        Raises:
            KdtfliteError: Something is, and no other worker has given a sign of life for a minute.
        """
        left, signs, since = missing(), None, time.monotonic()
        if left and self.count > 1:
            say(f"Teacher cache: waiting for other workers to write {len(left)} shards")
        while left:
            now = self._signs(), left
            if now != signs:
                signs, since = now, time.monotonic()
            if self.count == 1 or time.monotonic() - since > _PATIENCE:
                raise KdtfliteError(
                    f"The teacher cache {self.folder} is not complete: worker {self.index} of "
                    f"{self.count} has written its shards, but {_some(left)} missing, and no other "
                    f"worker has given a sign of life for {_PATIENCE:.0f} s. Start the other "
                    "workers again, or call cache_teacher with fewer; what is there is kept."
                )
            time.sleep(0.1)
            left = missing()

    def _signs(self) -> dict[str, int]:
        own = f".worker-{self.index}"
        return {
            path.name: path.stat().st_mtime_ns
            for path in self.folder.glob(".worker-*")
            if path.name != own
        }


def _of_cluster(resolver: tf.distribute.cluster_resolver.ClusterResolver | None) -> tuple[int, int]:
    if resolver is None or not resolver.task_type:
        return 0, 1
    jobs = resolver.cluster_spec().as_dict()
    # A chief comes before the workers.
    tasks = [(job, task) for job in ("chief", "worker") for task in range(len(jobs.get(job, ())))]
    here = (resolver.task_type, resolver.task_id)
    return (tasks.index(here), len(tasks)) if here in tasks else (0, 1)


def _some(left: list[str]) -> str:
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return "; ".join(left[:3]) + more + (" are" if len(left) > 1 else " is")
