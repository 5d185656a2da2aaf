"""Post-training quantization: an integer student without training, as good as its ranges allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import tf_keras as keras

from kdtflite.arguments import check_arguments
from kdtflite.data.representative import DEFAULT_SAMPLES
from kdtflite.errors import DataError
from kdtflite.models.as_graph import as_graph
from kdtflite.progress import track
from kdtflite.quantization import bias_correction, equalization
from kdtflite.quantization.aware import make_aware
from kdtflite.quantization.calibration import CALIBRATIONS, Observer
from kdtflite.quantization.inputs import ALL_SAMPLES, batch_inputs
from kdtflite.quantization.output_error import (
    compute_outputs,
    measure_accuracy,
    split_labels,
    squared_error,
)
from kdtflite.results import Axes, Result, Table, make_table, plot_bars

__all__ = ["CalibrationChoice", "TriedCalibration", "choose_calibration", "quantize_post_training"]


@check_arguments
def quantize_post_training(
    model: Any,
    representative_data: Any,
    *,
    calibration: str | Callable[[], Observer] = "min_max",
    equalize: bool = False,
    correct_biases: bool = False,
) -> keras.Model:
    """Returns a copy of `model` that rounds as its integer file will, without training.

    Equalization, calibration and bias correction follow each other as in Nagel et al.
    (Data-free quantization, arXiv 1906.04721, figure 4). The result is a student like one from
    `quantize_aware`, with fixed ranges: `kdtflite.convert` takes it, and it can be trained if the
    accuracy is too low.

    Args:
        model: A model as `kdtflite.models.as_graph` takes it. It is not changed.
        representative_data: A few hundred samples as `kdtflite.data.take_samples` takes them.
        calibration: How an activation's range is chosen from them, as in `quantize_aware`.
        equalize: First bring channels to more equal ranges, as `quantization.equalize` does
            with the data. It helps models whose channels differ much and are joined by ReLU.
        correct_biases: At the end subtract from each bias what rounding adds to the mean, as
            `quantization.correct_biases` does.

    Returns:
        A tf_keras model with the attributes `quantization`, `equalization` and
        `bias_correction`, the last two None where they were not asked for.

    Raises:
        UnsupportedModelError: The model cannot be traced, is quantized already, or has no layer
            that can be quantized.
        DataError: The data do not fit the model.
        ConfigurationError: There is no such calibration.

    Example:
        >>> import kdtflite
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> x = np.linspace(-1, 1, 64, dtype="float32").reshape(32, 2)
        >>> student = kdtflite.quantize_post_training(model, x, correct_biases=True)
        >>> student.quantization.summary()
        '1 trained, 0 folded, 0 calibrated'
    """
    model = as_graph(model)
    if representative_data is None:
        raise DataError(
            "Expected representative data: without training, ranges come from data alone. "
            "Received: None. Pass a few hundred samples as the model sees them in use."
        )
    if equalize:
        model = equalization.equalize(model, representative_data)
    student = make_aware(model, representative_data, calibration, "fixed", trains=False)
    student.equalization = model.equalization if equalize else None
    student.bias_correction = (
        bias_correction.correct_biases(student, representative_data) if correct_biases else None
    )
    return student


@dataclass(frozen=True)
class TriedCalibration:
    """The result of one calibration.

    Attributes:
        calibration: Its name.
        error: Mean squared difference between the outputs and the float model's, as a share of the
            float outputs' mean square; the mean over the model's outputs.
        accuracy: The share of samples classified correctly, or None without labels.
    """

    calibration: str
    error: float
    accuracy: float | None = None


@dataclass(frozen=True)
class CalibrationChoice(Result):
    """The result of `choose_calibration`.

    Attributes:
        tried: Every calibration, the best first.
        student: The quantized model with the best calibration.
    """

    tried: tuple[TriedCalibration, ...]
    student: Any = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the calibrations as plain values for JSON."""
        return {"tried": [asdict(one) for one in self.tried]}

    def to_table(self) -> Table:
        """Returns the calibrations as a rich table, the best first."""
        rows = (
            (
                one.calibration,
                f"{one.error:.3g}",
                "" if one.accuracy is None else f"{one.accuracy:.2%}",
            )
            for one in self.tried
        )
        title = "Calibrations, the best first"
        return make_table(rows, text=["calibration"], numbers=("error", "accuracy"), title=title)

    def summary(self) -> str:
        """Returns the best calibration in one line."""
        best = self.tried[0]
        accuracy = "" if best.accuracy is None else f", accuracy {best.accuracy:.2%}"
        return f"Best calibration: {best.calibration} (error {best.error:.3g}{accuracy})."

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the error of each calibration as bars, the best on top.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        bars = [(one.calibration, one.error) for one in self.tried]
        return plot_bars(bars, "Error as a share of the outputs' mean square", ax)


@check_arguments
def choose_calibration(
    model: Any,
    representative_data: Any,
    validation_data: Any,
    *,
    equalize: bool = False,
    correct_biases: bool = False,
) -> CalibrationChoice:
    """Quantizes `model` with every calibration and returns the student that does best.

    Args:
        model: A model as `kdtflite.models.as_graph` takes it. It is not changed.
        representative_data: The samples from which the ranges are chosen.
        validation_data: The samples on which the students are compared, other samples than the
            test set: in a form that `representative_data` may have, or with labels, as a pair
            (x, y) or a split, y class indices of shape (samples,). With labels the highest
            accuracy wins, and among equals the smallest error; without, the smallest error.
        equalize: As in `quantize_post_training`.
        correct_biases: As in `quantize_post_training`.

    Raises:
        UnsupportedModelError: As in `quantize_post_training`.
        DataError: The data do not fit the model, or the labels are not one class per sample.
    """
    model = as_graph(model)
    x, labels = split_labels(validation_data)
    batches = list(
        batch_inputs(model, x, limit=ALL_SAMPLES if labels is not None else DEFAULT_SAMPLES)
    )
    wanted = compute_outputs(model, batches)
    if equalize:
        model = equalization.equalize(model, representative_data)
    tried = []
    for name in track(CALIBRATIONS, "Calibrating", total=len(CALIBRATIONS)):
        student = quantize_post_training(
            model, representative_data, calibration=name, correct_biases=correct_biases
        )
        student.equalization = model.equalization if equalize else None
        outputs = compute_outputs(student, batches)
        accuracy = None if labels is None else measure_accuracy(labels, outputs)
        row = TriedCalibration(name, squared_error(wanted, outputs), accuracy)
        tried.append((-(accuracy or 0.0), row.error, row, student))
    tried.sort(key=lambda one: one[:2])
    return CalibrationChoice(tuple(row for *_, row, _ in tried), tried[0][3])
