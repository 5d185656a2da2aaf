"""What a run has finished, and whether its files are still what it wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdtflite.errors import DataError
from kdtflite.files import read_json, sha256, write_json
from kdtflite.pipeline.run_result import SHIPPED
from kdtflite.progress import say

__all__ = [
    "ABOUT",
    "REPORT",
    "RESULTS",
    "digest_result",
    "find_damage",
    "list_artifacts",
    "note_results",
    "read_about",
    "read_finished",
]

ABOUT = "run.json"
"""The file that marks a folder as a run, with its seed, versions and machine."""
REPORT = "report.json"
"""The file that is written last and marks a finished run."""
RESULTS = (SHIPPED, "report.html", REPORT)
"""The files at the top of a finished run's folder, made from those of its stages."""
_ABOUT_KEYS = {"seed", "versions", "machine", "created"}


def list_artifacts(folder: Path, run_folder: Path) -> list[dict[str, Any]]:
    """Returns name, digest and size of every file that a stage left."""
    return [
        {
            "file": path.relative_to(run_folder).as_posix(),
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "done.json"
    ]


def digest_result(result: Any) -> str:
    """Returns the SHA-256 of what a stage returned: done.json holds both."""
    return _digest(json.dumps(result))


def read_finished(folder: Path, *, quiet: bool = False) -> dict[str, Any] | None:
    """Returns what a finished stage left, or None if it is not finished or its files changed.

    Args:
        folder: The stage's folder.
        quiet: Do not report what changed.
    """
    if not (folder / "done.json").is_file():
        return None
    done: Any = read_json(folder / "done.json")
    try:
        if not isinstance(done["result"], dict) or not isinstance(done["seconds"], int | float):
            raise DataError("done.json is not what the stage wrote")
        if done["result_sha256"] != digest_result(done["result"]):
            raise DataError("done.json changed")
        for artifact in done["artifacts"]:
            path = folder.parent / artifact["file"]
            if not path.is_file():
                raise DataError(f"{artifact['file']} is missing")
            if sha256(path) != artifact["sha256"]:
                raise DataError(f"{artifact['file']} changed")
    except DataError as error:
        problem = str(error)
    except (OSError, ValueError, TypeError, KeyError):
        problem = "done.json cannot be read"
    else:
        return dict(done)
    if not quiet:
        say(f"Stage {folder.name} is repeated: {problem}.")
    return None


def read_about(folder: Path) -> dict[str, Any] | None:
    """Returns the content of run.json, or None if it is missing or damaged."""
    about = read_json(folder / ABOUT)
    return about if isinstance(about, dict) and set(about) >= _ABOUT_KEYS else None


def note_results(folder: Path, about: dict[str, Any], report: str) -> None:
    """Writes the digests of a run's results into run.json.

    Args:
        folder: The run's folder, with all of `RESULTS` but the report.
        about: The content of run.json.
        report: The content of report.json, which is written after this.
    """
    digests = {name: sha256(folder / name) for name in RESULTS if name != REPORT}
    digests[REPORT] = _digest(report)
    write_json(folder / ABOUT, {**about, "results": digests}, overwrite=True)


def find_damage(folder: Path, stages: Sequence[str]) -> str | None:
    """Returns what is wrong with the folder of a finished run, or None.

    Args:
        folder: The run's folder, in which report.json says that it is finished.
        stages: The folders of its stages.
    """
    about = read_about(folder)
    if about is None:
        return f"{ABOUT} cannot be read"
    for stage in stages:
        if read_finished(folder / stage, quiet=True) is None:
            return f"stage {stage} is not what it was"
    results = about.get("results")
    if not isinstance(results, dict) or set(results) != set(RESULTS):
        return f"{ABOUT} holds no digests of its results"
    for name, digest in results.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} was changed"
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
