"""The converter in a process of its own: it can crash, and a user's notebook must not.

    python -m kdtflite.conversion.worker FOLDER

FOLDER holds job.json, which names the SavedModel and the target, and samples_0.npy and so on,
one an input.
Prints a line a calibration sample; writes model.tflite, or error.txt and exits with 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdtflite.conversion.four_bits import with_int4_weights
from kdtflite.conversion.targets import Target, get_target
from kdtflite.runtime import quiet_tensorflow

__all__ = ["main"]


def main(folder: Path) -> int:
    """Converts as the job in `folder` says; returns the process's exit code."""
    quiet_tensorflow()
    import tensorflow as tf

    job = json.loads((folder / "job.json").read_text())
    try:
        converter = tf.lite.TFLiteConverter.from_saved_model(job["model"])
        target = get_target(job["target"])
        if target.fully_integer:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [_integer_operators(tf, target)]
            converter.inference_input_type = tf.as_dtype(job["io_dtype"])
            converter.inference_output_type = tf.as_dtype(job["io_dtype"])
            converter.representative_dataset = lambda: _samples(folder, job["inputs"])
        elif target.weights in ("float16", "int8"):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if target.weights == "float16":
                converter.target_spec.supported_types = [tf.float16]
        content = converter.convert()
        if target.weights == "int4":
            content = with_int4_weights(content, block_size=target.block_size)
    except Exception as error:  # whatever the converter raises is the parent's to explain
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        return 1
    (folder / "model.tflite").write_bytes(content)
    return 0


def _integer_operators(tf: Any, target: Target) -> Any:
    if target.activations == "int16":
        return tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    return tf.lite.OpsSet.TFLITE_BUILTINS_INT8


def _samples(folder: Path, inputs: list[str]) -> Iterator[dict[str, Any]]:
    import numpy as np

    samples = {
        name: np.load(folder / f"samples_{i}.npy", mmap_mode="r") for i, name in enumerate(inputs)
    }
    for i in range(len(next(iter(samples.values())))):
        print("sample", flush=True)
        yield {name: value[i : i + 1] for name, value in samples.items()}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
