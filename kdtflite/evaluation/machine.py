"""The machine a latency was measured on: without it the number means nothing."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["count_usable_cores", "describe_machine"]


def count_usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    # A container or `taskset` may give fewer than the machine has; macOS cannot say.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Returns the processor, its usable cores, the operating system and LiteRT's version."""
    try:
        litert = metadata.version("ai-edge-litert")
    except metadata.PackageNotFoundError:
        litert = "not installed"
    return {
        "cpu": _read_cpu_name(Path("/proc/cpuinfo")),
        "architecture": platform.machine(),
        "cores": count_usable_cores(),
        "os": f"{platform.system()} {platform.release()}",
        "litert": litert,
    }


def _read_cpu_name(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    # x86 says "model name", many ARM boards only "Hardware" or "Model".
    for wanted in ("model name", "hardware", "model"):
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip().lower() == wanted and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"
