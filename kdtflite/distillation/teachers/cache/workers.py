"""Several processes that write one cache together, each its own shards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from kdtflite.distillation.teachers.cache.manifest import summarize_missing
from kdtflite.errors import ConfigurationError, KdtfliteError
from kdtflite.progress import say

__all__ = ["Workers", "find_worker"]

_PATIENCE = 60.0  # seconds without a sign of life
_BETWEEN_SIGNS = 2.0


def find_worker(worker: tuple[int, int] | None) -> tuple[int, int]:
    """Returns (index, count) of this process among those that write a cache together.

    Args:
        worker: The user's choice; None takes it from the tf.distribute strategy in scope.

    Raises:
        ConfigurationError: The index is outside the count.
    """
    if worker is None:
        worker = _find_in_cluster(tf.distribute.get_strategy().cluster_resolver)
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
        folder: The folder of the cache.
        worker: (index, count) of this process.
    """

    def __init__(self, folder: Path, worker: tuple[int, int]) -> None:
        self.folder = folder
        self.index, self.count = worker
        self._signed = 0.0

    def owns(self, part: int) -> bool:
        """Returns whether this worker writes a shard.

        Workers take turns rather than ranges, since the length of a tf.data.Dataset may be unknown.
        """
        return part % self.count == self.index

    def sign(self) -> None:
        """Shows the other workers that this one is alive."""
        if self.count > 1 and time.monotonic() - self._signed > _BETWEEN_SIGNS:
            self._signed = time.monotonic()
            (self.folder / f".worker-{self.index}").write_text(str(os.getpid()))

    def wait(self, list_missing: Callable[[], list[str]]) -> None:
        """Waits until nothing is missing.

        Raises:
            KdtfliteError: No other worker has given a sign of life for a minute.
        """
        left, signs, since = list_missing(), None, time.monotonic()
        if left and self.count > 1:
            say(f"Teacher cache: waiting for other workers to write {len(left)} shards")
        while left:
            now = self._read_signs(), left
            if now != signs:
                signs, since = now, time.monotonic()
            if self.count == 1 or time.monotonic() - since > _PATIENCE:
                raise KdtfliteError(
                    f"The teacher cache {self.folder} is not complete: worker {self.index} of "
                    f"{self.count} has written its shards, but {summarize_missing(left)} missing, "
                    f"and no other worker has given a sign of life for {_PATIENCE:.0f} s. "
                    "Start the other workers again, or call cache_teacher with fewer; what exists "
                    "is kept."
                )
            time.sleep(0.1)
            left = list_missing()

    def _read_signs(self) -> dict[str, int]:
        own = f".worker-{self.index}"
        return {
            path.name: path.stat().st_mtime_ns
            for path in self.folder.glob(".worker-*")
            if path.name != own
        }


def _find_in_cluster(
    resolver: tf.distribute.cluster_resolver.ClusterResolver | None,
) -> tuple[int, int]:
    if resolver is None or not resolver.task_type:
        return 0, 1
    jobs = resolver.cluster_spec().as_dict()
    # A chief comes before the workers.
    tasks = [(job, task) for job in ("chief", "worker") for task in range(len(jobs.get(job, ())))]
    here = (resolver.task_type, resolver.task_id)
    return (tasks.index(here), len(tasks)) if here in tasks else (0, 1)
