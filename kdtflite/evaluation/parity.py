"""How closely a file agrees with the Keras model it was converted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.evaluation.latency import count_delegated_operators
from kdtflite.evaluation.models import (
    find_output_kind,
    find_output_step,
    predict,
)
from kdtflite.evaluation.scores import guess_kind, to_two_classes
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.results import Axes, Result, Table, make_axes, make_table

__all__ = ["Parity", "compare"]


@dataclass(frozen=True)
class Parity(Result):
    """Agreement of a Keras model and its file on the same samples.

    Attributes:
        samples: Number of samples.
        argmax_equal: Share of samples for which both predict the same class; of equal scores
            the first counts.
        largest_difference: Largest absolute difference of two outputs.
        mean_difference: Mean absolute difference of two outputs.
        step: Step between two values of the file's output, or None for a float file.
        largest_difference_steps: Largest difference in steps, or None.
        mean_difference_steps: Mean difference in steps, or None.
        histogram: Number of output values by their difference in whole steps, rounded; empty
            for a float file.
        kernels: "XNNPACK" or "built-in": the kernels that ran the file. The two differ by some
            steps, so a parity figure that does not name them cannot be repeated.
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

    def to_table(self) -> Table:
        """Returns the agreement and the differences as a rich table."""
        rows = [("real values", f"{self.mean_difference:.3g}", f"{self.largest_difference:.3g}")]
        if self.mean_difference_steps is not None and self.largest_difference_steps is not None:
            steps = f"{self.mean_difference_steps:.3f}", f"{self.largest_difference_steps:.2f}"
            rows.append(("steps of the file", *steps))
        numbers = ("mean difference", "largest difference")
        return make_table(rows, text=["outputs"], numbers=numbers)

    def summary(self) -> str:
        """Returns how often the classes agree and how far the outputs differ, in one line."""
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

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws how many outputs differ by how many steps; for a float file by how much.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        ax = make_axes(ax, 6, 4)
        if self.histogram:
            ax.bar(list(self.histogram), list(self.histogram.values()))
            ax.set_yscale("log")
            ax.set_xlabel("difference in steps")
            ax.set_ylabel("outputs (log scale)")
        else:
            ax.bar(["mean", "largest"], [self.mean_difference, self.largest_difference])
            ax.set_ylabel("difference")
        return ax


@check_arguments
def compare(
    model: Any,
    lite: Any,
    data: np.ndarray | Mapping[str, np.ndarray],
    *,
    xnnpack: bool = True,
    workers: int | None = 1,
    batch_size: int = 256,
    progress: bool = False,
) -> Parity:
    """Compares the outputs of a Keras model with its file's, sample by sample.

    Args:
        model: The Keras model that the file was converted from, fake-quantized or float.
        lite: A LiteModel, the bytes of a `.tflite`, or its path.
        data: Samples, shape (samples, ...), real values; a dict by input name for several inputs.
        xnnpack: Run the file with LiteRT's default delegate; False uses the built-in kernels.
        workers: How many interpreters run in parallel.
        batch_size: Samples per step of the Keras model.
        progress: Show progress.

    Returns:
        How often the predicted classes agree, and how far the outputs differ.

    Raises:
        DataError: Samples that do not fit the models, or outputs that are not finite.
        ShapeMismatchError: The outputs differ in shape, or there are several outputs.

    Example:
        >>> import kdtflite, numpy
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> lite = kdtflite.convert(model, target="float32")
        >>> kdtflite.compare(model, lite, numpy.eye(4, dtype="float32")).largest_difference < 1e-5
        True
    """
    model, lite = as_tf_keras(model), as_lite_model(lite)
    ours = predict(model, data, batch_size=batch_size, progress=progress)
    theirs = predict(lite, data, workers=workers, xnnpack=xnnpack, progress=progress)
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
    step = find_output_step(lite)
    steps = None if step is None else difference / step
    same_class = _choose_classes(model, ours, None) == _choose_classes(lite, theirs, step)
    return Parity(
        samples=len(ours),
        argmax_equal=float(same_class.mean()),
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        step=step,
        largest_difference_steps=None if steps is None else float(steps.max()),
        mean_difference_steps=None if steps is None else float(steps.mean()),
        histogram={} if steps is None else _count_steps_apart(steps),
        kernels=_name_kernels(lite, xnnpack),
    )


def _choose_classes(model: Any, outputs: np.ndarray, step: float | None) -> np.ndarray:
    if outputs.ndim == 2 and outputs.shape[1] == 1:
        read = find_output_kind(model)
        kind = guess_kind(outputs, step) if read is None else read[0]
        outputs = to_two_classes(outputs, kind)
    return outputs.argmax(axis=-1)


def _count_steps_apart(steps: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(np.round(steps).astype(np.int64), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _name_kernels(lite: LiteModel, xnnpack: bool) -> str:
    # XNNPACK may take no operator of a file (int16x8): then the built-in kernels ran.
    taken, _ = count_delegated_operators(lite.interpreter(xnnpack=True)) if xnnpack else (0, 0)
    return "XNNPACK" if taken else "built-in"
