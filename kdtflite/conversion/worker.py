"""Runs the converter outside the caller's process, because it can crash and a notebook must not.

    python -m kdtflite.conversion.worker

A job names a folder, and the environment to convert in. The folder holds job.json, which names the
SavedModel and the target, and one file samples_0.npy, samples_1.npy, ... per input. TensorFlow is
imported once; a child per job sends a message per calibration sample and writes model.tflite, or
error.txt if it fails. The process ends after a minute without a job. If the caller ends, it takes
the job and its folder along.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdtflite.conversion.four_bits import quantize_to_int4
from kdtflite.conversion.targets import Target, get_target
from kdtflite.forking import serve
from kdtflite.runtime import quiet_tensorflow

__all__ = ["convert_folder", "main"]

_IDLE_SECONDS = 60.0


def main() -> None:
    """Takes jobs until stdin ends."""
    quiet_tensorflow()
    import tensorflow as tf

    _ = tf.lite.TFLiteConverter  # loaded lazily: here, and not in every child
    serve(
        _work,
        # On macOS a forked child of a process with threads may not call the system's libraries.
        forks=sys.platform == "linux",
        idle=_IDLE_SECONDS,
        abandon=lambda job: shutil.rmtree(job["folder"], ignore_errors=True),
    )


def _work(job: dict[str, Any], content: bytes, send: Callable[[str], None]) -> int:
    del content
    folder = Path(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 2)
    return convert_folder(folder, lambda: send("sample"))


def convert_folder(folder: Path, count: Callable[[], None] = lambda: None) -> int:
    """Converts as job.json in `folder` says; returns 0, or 1 if it wrote error.txt.

    Args:
        folder: Holds the job, and then the result.
        count: Is called before each calibration sample.
    """
    import tensorflow as tf

    job = json.loads((folder / "job.json").read_text())
    try:
        converter = tf.lite.TFLiteConverter.from_saved_model(job["model"])
        target = get_target(job["target"])
        if target.fully_integer:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [_choose_integer_operators(tf, target)]
            converter.inference_input_type = tf.as_dtype(job["io_dtype"])
            converter.inference_output_type = tf.as_dtype(job["io_dtype"])
            converter.representative_dataset = lambda: _load_samples(folder, job["inputs"], count)
        elif target.weights in ("float16", "int8"):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if target.weights == "float16":
                converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
        if target.weights == "int4" and not target.fully_integer:
            content = quantize_to_int4(content, block_size=target.block_size)
        (folder / "model.tflite").write_bytes(content)
    except Exception as error:  # the parent explains whatever the converter raises
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _choose_integer_operators(tf: Any, target: Target) -> Any:
    if target.activations == "int16":
        return tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    return tf.lite.OpsSet.TFLITE_BUILTINS_INT8


def _load_samples(
    folder: Path, inputs: list[str], count: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    import numpy as np

    samples = {
        name: np.load(folder / f"samples_{i}.npy", mmap_mode="r") for i, name in enumerate(inputs)
    }
    for i in range(len(next(iter(samples.values())))):
        count()
        yield {name: value[i : i + 1] for name, value in samples.items()}


if __name__ == "__main__":
    main()
