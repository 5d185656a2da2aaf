"""The cluster that a process belongs to, as TF_CONFIG describes it."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

from kdtflite.errors import ConfigurationError

__all__ = ["Cluster", "read_cluster"]

_EXAMPLE = (
    '{"cluster": {"worker": ["host1:2333", "host2:2333"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclass(frozen=True)
class Cluster:
    """Processes that train together.

    Attributes:
        addresses: host:port of every worker, the chief first.
        index: Which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    def find_lost(self) -> list[str]:
        """Returns descriptions of the other workers that do not answer."""
        return [
            f"worker {number} ({address})"
            for number, address in enumerate(self.addresses)
            if number != self.index and not _is_answering(address)
        ]


def read_cluster() -> Cluster | None:
    """Returns the cluster that TF_CONFIG names, or None if it names fewer than two workers.

    Raises:
        ConfigurationError: TF_CONFIG cannot be used.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster", {}), config.get("task", {})
        chiefs, workers = list(jobs.get("chief", [])), list(jobs.get("worker", []))
        others = sorted(set(jobs) - {"chief", "worker"})
        if len(chiefs) + len(workers) < 2 and not others:
            return None
        kind, index = task["type"], int(task["index"])
        own = {"chief": chiefs, "worker": workers}[kind]
        if others or len(chiefs) > 1 or not 0 <= index < len(own):
            raise KeyError(kind)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"The environment variable TF_CONFIG cannot be used. Expected workers, at most one "
            f"chief, and which of them this process is: {_EXAMPLE}. Received: {text}."
        ) from error
    position = index + (len(chiefs) if kind == "worker" else 0)
    return Cluster((*chiefs, *workers), position)


def _is_answering(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3):
            return True
    except (OSError, ValueError):
        return False
