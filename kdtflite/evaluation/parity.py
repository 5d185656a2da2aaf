"""How closely a file agrees with the Keras model it was converted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.evaluation.latency import delegated_operators
from kdtflite.evaluation.models import (
    as_lite_model,
    as_model,
    last_activation,
    output_step,
    predict,
)
from kdtflite.evaluation.scores import guess_kind, two_classes

__all__ = ["Parity", "compare"]


@dataclass(frozen=True)
class Parity:
    """Agreement of a Keras model and its file on the same samples.

    Attributes:
        samples: Number of samples.
        argmax_equal: Share of predictions with the same highest score (of equal scores the
            first).
        largest_difference: Largest absolute difference of two outputs.
        mean_difference: Mean absolute difference of two outputs.
        step: Step between two values of the file's output, or None for a float file.
        largest_difference_steps: Largest difference in steps, or None.
        mean_difference_steps: Mean difference in steps, or None.
        histogram: Number of output values by their difference in whole steps, rounded; empty
            for a float file.
        kernels: "XNNPACK" or "built-in": which ran the file. The two differ from each other by
            some steps, so a parity without this name cannot be repeated.
    """

    samples: int
    argmax_equal: float
    largest_difference: float
    mean_difference: float
    step: float | None
    largest_difference_steps: float | None
    mean_difference_steps: float | None
    histogram: dict[int, int]
    kernels: str

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        return {
            "samples": self.samples,
            "argmax_equal": self.argmax_equal,
            "largest_difference": self.largest_difference,
            "mean_difference": self.mean_difference,
            "step": self.step,
            "largest_difference_steps": self.largest_difference_steps,
            "mean_difference_steps": self.mean_difference_steps,
            "histogram": {str(steps): count for steps, count in self.histogram.items()},
            "kernels": self.kernels,
        }

    def __str__(self) -> str:
        steps = (
            f"{self.largest_difference_steps:.2f} steps at most, "
            f"{self.mean_difference_steps:.3f} on average"
            if self.step is not None
            else f"{self.largest_difference:.3g} at most, {self.mean_difference:.3g} on average"
        )
        return (
            f"Same class for {self.argmax_equal:.2%} of {self.samples:,} samples with the "
            f"{self.kernels} kernels; outputs differ by {steps}."
        )


def compare(
    student: Any,
    lite: Any,
    x: np.ndarray | Mapping[str, np.ndarray],
    *,
    xnnpack: bool = True,
    workers: int | None = 1,
    batch_size: int = 256,
    progress: bool = False,
) -> Parity:
    """Compares the outputs of a Keras model with its file's, sample by sample.

    Args:
        student: The Keras model the file was converted from, fake-quantized or float.
        lite: The LiteModel, or the path of a `.tflite`.
        x: Samples, shape (samples, ...), real values; a dict by input name for several inputs.
        xnnpack: Run the file with LiteRT's default delegate; False takes the built-in kernels.
        workers: Interpreters side by side.
        batch_size: Samples a step of the Keras model.
        progress: Show progress.

    Raises:
        DataError: Samples that do not fit the models, or outputs that are not finite.
        ShapeMismatchError: The two give outputs of different shapes, or several outputs.
    """
    model, file = as_model(student), as_lite_model(lite)
    ours = predict(model, x, batch_size=batch_size, progress=progress)
    theirs = predict(file, x, workers=workers, xnnpack=xnnpack, progress=progress)
    if ours.shape != theirs.shape:
        raise ShapeMismatchError(
            "The Keras model and the file give different outputs. Expected the same shape. "
            f"Received: {ours.shape} and {theirs.shape}. Was the file converted from this model?"
        )
    for name, outputs in (("Keras model", ours), ("file", theirs)):
        if not np.isfinite(outputs).all():
            raise DataError(
                f"Expected finite outputs. Received: NaN or infinity from the {name}. "
                "Check its weights."
            )
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    step = output_step(file)
    steps = None if step is None else difference / step
    return Parity(
        samples=len(ours),
        argmax_equal=float((_classes(model, ours, None) == _classes(file, theirs, step)).mean()),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        step=step,
        largest_difference_steps=None if steps is None else float(steps.max()),
        mean_difference_steps=None if steps is None else float(steps.mean()),
        histogram={} if steps is None else _histogram(steps),
        kernels=_kernels(file, xnnpack),
    )


def _classes(model: Any, outputs: np.ndarray, step: float | None) -> np.ndarray:
    if outputs.ndim == 2 and outputs.shape[1] == 1:
        read = last_activation(model)
        kind = guess_kind(outputs, step) if read is None else read[0]
        outputs = two_classes(outputs, kind)
    return outputs.argmax(axis=-1)


def _histogram(steps: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(np.round(steps).astype(np.int64), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _kernels(file: Any, xnnpack: bool) -> str:
    # XNNPACK may take nothing of a file (int16x8): then the built-in kernels ran.
    taken, _ = delegated_operators(file.interpreter(xnnpack=True)) if xnnpack else (0, 0)
    return "XNNPACK" if taken else "built-in"
