"""Opens a file of unknown origin for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdtflite.errors import ModelFileError
from kdtflite.lite.model import LiteModel
from kdtflite.lite.trial import try_file

__all__ = ["load_untrusted"]

_KERNELS = {"XNNPACK": True, "built-in kernels": False}


def load_untrusted(path: Path, *, kernels: Sequence[str] = ()) -> LiteModel:
    """Loads a .tflite file after another process has run it once with each kind of kernel.

    Args:
        path: The file.
        kernels: Which of "XNNPACK" and "built-in kernels" must be able to run it.

    Raises:
        ModelFileError: The file is missing, empty, damaged or of another format, LiteRT crashes
            on it, or one of `kernels` cannot run it.
    """
    lite = LiteModel.load(path, sandbox=True)
    for name in kernels:
        trial = try_file(lite.content, xnnpack=_KERNELS[name])
        if trial.refusal:
            refusal = " ".join(trial.refusal.split()).rstrip(".")
            raise ModelFileError(f"{path}: LiteRT cannot run this file with {name}: {refusal}.")
    return lite
