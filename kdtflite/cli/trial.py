"""A file of unknown origin runs once in a child process before this one touches it.

    python -m kdtflite.cli.trial MODEL.tflite

LiteRT's kernels trust what a file says, and abort the process where it is wrong. Reading the
flatbuffer finds most of that; what it cannot find ends a child, and not the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdtflite.errors import ModelFileError
from kdtflite.flatbuffer import read_graph
from kdtflite.litemodel import LiteModel

__all__ = ["load_tried", "main"]

KERNELS = {"XNNPACK": True, "built-in kernels": False}
# A file that takes longer for one invoke is slow, which is no fault of the file.
_SECONDS = 60.0


def load_tried(path: Path, *, kernels: Sequence[str] = ()) -> LiteModel:
    """Loads a .tflite file that was tried in a child process.

    Args:
        path: The file.
        kernels: Of "XNNPACK" and "built-in kernels", those that must run it.

    Raises:
        ModelFileError: The file is missing, empty, damaged or of another format, LiteRT crashes
            on it, or one of `kernels` cannot run it.
    """
    try:
        read_graph(path.read_bytes())
    except (ModelFileError, OSError):
        return LiteModel.load(path)  # says what is wrong, and where
    code, refusals = _run_child(path)
    if code < 0:
        raise ModelFileError(
            f"{path}: LiteRT crashes on this file ({signal.Signals(-code).name}). It is damaged, "
            "or holds what no kernel checks; copy it again or convert the model again."
        )
    lite = LiteModel.load(path)
    for name in kernels:
        if name in refusals:
            raise ModelFileError(f"{path}: LiteRT cannot run this file with {refusals[name]}")
    return lite


def main(path: str) -> None:
    """Runs a file on zeros with each kind of kernels; prints which refuse it, and why, as JSON."""
    refusals = {}
    try:
        lite = LiteModel.load(path)
    except ModelFileError:
        print("{}")  # the parent finds the same
        return
    for name, xnnpack in KERNELS.items():
        try:
            interpreter = lite.interpreter(xnnpack=xnnpack)
            for spec in lite.inputs:
                interpreter.set_tensor(spec.index, np.zeros(spec.shape, spec.dtype))
            interpreter.invoke()
        except (ModelFileError, RuntimeError, ValueError, MemoryError) as error:
            refusals[name] = f"{name}: {' '.join(str(error).split())}"
    print(json.dumps(refusals))


def _run_child(path: Path) -> tuple[int, dict[str, str]]:
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in (root, environment.get("PYTHONPATH")) if part
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kdtflite.cli.trial", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0, {}
    try:
        return done.returncode, dict(json.loads(done.stdout or b"{}"))
    except ValueError:
        return done.returncode, {}


if __name__ == "__main__":
    main(sys.argv[1])
