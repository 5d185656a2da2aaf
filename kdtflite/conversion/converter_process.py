"""The process that converts: started with the first conversion, used again by the next ones."""

from __future__ import annotations

from pathlib import Path

from kdtflite.forking import ForkServer
from kdtflite.progress import track

__all__ = ["run_converter", "server"]


def _change_environment() -> dict[str, str]:
    # The converter does not need the GPU, which this process may hold. Keras 3 is not needed
    # either; its import of scikit-learn and matplotlib takes a second.
    return {"CUDA_VISIBLE_DEVICES": "-1", "TF_USE_LEGACY_KERAS": "1"}


server = ForkServer("kdtflite.conversion.worker", _change_environment)
"""The process; to be started early, as it imports TensorFlow while the caller goes on."""


def run_converter(folder: Path, *, samples: int, progress: bool) -> tuple[int, str]:
    """Runs the job in `folder` (see `worker`); one at a time.

    Args:
        folder: Holds the job, and then the result.
        samples: The number of calibration samples.
        progress: Show how many of them are done.

    Returns:
        The exit code, negative for a signal, and what the converter wrote to stderr.
    """
    bar = track(range(samples), "Calibrating", quiet=not progress)
    try:
        outcome = server.run(
            {"folder": str(folder), "environment": server.make_environment()},
            listen=lambda _: next(bar, None),
        )
    finally:
        bar.close()
    log = folder / "log.txt"
    text = log.read_text(errors="replace") if log.exists() else ""
    return outcome.code, (outcome.log or "") + text
