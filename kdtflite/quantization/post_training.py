"""quantize_post_training: an integer student without training, by the best that ranges allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import tf_keras as keras
from rich.table import Table

from kdtflite.data.representative import DEFAULT_SAMPLES
from kdtflite.errors import DataError
from kdtflite.models.as_functional import as_functional
from kdtflite.models.float32 import in_float32
from kdtflite.progress import track
from kdtflite.quantization import bias_correction
from kdtflite.quantization.aware import quantize_aware
from kdtflite.quantization.calibration import CALIBRATIONS, Observer
from kdtflite.quantization.equalization import equalize as equalized
from kdtflite.quantization.inputs import ALL_SAMPLES, input_batches
from kdtflite.quantization.measures import accuracy_of, outputs_of, split_labels, squared_error
from kdtflite.tables import as_text

__all__ = ["CalibrationChoice", "TriedCalibration", "choose_calibration", "quantize_post_training"]


def quantize_post_training(
    model: Any,
    representative_data: Any,
    *,
    calibration: str | Callable[[], Observer] = "min_max",
    equalize: bool = False,
    correct_biases: bool = False,
) -> keras.Model:
    """Returns a copy of `model` that rounds as its integer file will, without training.

    Equalization, calibration and bias correction one after the other, as Nagel et al. put them
    together (Data-free quantization, arXiv 1906.04721, figure 4). What it returns is a student
    as `quantize_aware` makes it, its ranges fixed: `kdtflite.convert` takes it, and should the
    accuracy not do, it trains.

    Args:
        model: A tf_keras or Keras 3 Sequential or Functional model, built. It is not changed.
        representative_data: A few hundred samples as `kdtflite.data.representative` takes them.
        calibration: How an activation's range is chosen from them, as in `quantize_aware`.
        equalize: First bring channels to more equal ranges, as `quantization.equalize` does
            with the data. It helps models whose channels differ much and are joined by ReLU.
        correct_biases: At the end take from each bias what rounding adds to the mean, as
            `quantization.correct_biases` does.

    Returns:
        A tf_keras model with the attributes `quantization`, `equalization` and
        `bias_correction`, the last two None where they were not asked for.

    Raises:
        UnsupportedModelError: The model is subclassed, quantized already, or has no layer that
            can be quantized.
        DataError: The data do not fit the model.
        ConfigurationError: There is no such calibration.

    Example:
        student = kdtflite.quantize_post_training(model, x_train, correct_biases=True)
        lite = kdtflite.convert(student, x_train)
    """
    if representative_data is None:
        raise DataError(
            "Expected representative data: without training, ranges come from data alone. "
            "Received: None. Pass a few hundred samples as the model sees them in use."
        )
    model = as_functional(model)
    if equalize:
        model = equalized(model, representative_data)
    student = quantize_aware(model, representative_data, calibration=calibration, ranges="fixed")
    student.equalization = model.equalization if equalize else None
    student.bias_correction = (
        bias_correction.correct_biases(student, representative_data) if correct_biases else None
    )
    return student


@dataclass(frozen=True)
class TriedCalibration:
    """What one way to choose ranges came to.

    Attributes:
        calibration: Its name.
        error: Mean squared difference of the outputs from the float model's, as a share of the
            float outputs' mean square; the mean over the model's outputs.
        accuracy: The share of samples classified rightly, where labels were given.
    """

    calibration: str
    error: float
    accuracy: float | None = None


@dataclass(frozen=True)
class CalibrationChoice:
    """What `choose_calibration` found.

    Attributes:
        tried: Every calibration, the best first.
        student: The student of the best.
    """

    tried: tuple[TriedCalibration, ...]
    student: Any = field(repr=False, compare=False)

    def summary(self) -> str:
        """Returns the calibrations as a table."""
        table = Table(title="Calibrations, the best first")
        for column in ("calibration", "error", "accuracy"):
            table.add_column(column, justify="left" if column == "calibration" else "right")
        for one in self.tried:
            accuracy = "" if one.accuracy is None else f"{one.accuracy:.2%}"
            table.add_row(one.calibration, f"{one.error:.3g}", accuracy)
        return as_text(table)

    def to_dict(self) -> list[dict[str, Any]]:
        """Returns the calibrations as plain values for JSON."""
        return [asdict(one) for one in self.tried]


def choose_calibration(
    model: Any,
    representative_data: Any,
    validation: Any,
    *,
    equalize: bool = False,
    correct_biases: bool = False,
) -> CalibrationChoice:
    """Quantizes `model` by every calibration there is and returns the student that does best.

    Args:
        model: A tf_keras or Keras 3 Sequential or Functional model, built. It is not changed.
        representative_data: What the ranges are chosen from.
        validation: What the students are compared on, other samples than the test set: as
            `representative_data`, or with labels, a pair (x, y) or a split, y class indices of
            shape (samples,). With labels the highest accuracy wins, and of equals the least
            error; without, the least error.
        equalize: As in `quantize_post_training`.
        correct_biases: As in `quantize_post_training`.

    Raises:
        UnsupportedModelError: As `quantize_post_training` does.
        DataError: The data do not fit the model, or the labels are not one class a sample.
    """
    model = in_float32(as_functional(model))
    x, labels = split_labels(validation)
    batches = list(
        input_batches(model, x, limit=ALL_SAMPLES if labels is not None else DEFAULT_SAMPLES)
    )
    wanted = outputs_of(model, batches)
    if equalize:
        model = equalized(model, representative_data)
    tried = []
    for name in track(CALIBRATIONS, "Calibrating", total=len(CALIBRATIONS)):
        student = quantize_post_training(
            model, representative_data, calibration=name, correct_biases=correct_biases
        )
        student.equalization = model.equalization if equalize else None
        outputs = outputs_of(student, batches)
        accuracy = None if labels is None else accuracy_of(labels, outputs)
        row = TriedCalibration(name, squared_error(wanted, outputs), accuracy)
        tried.append((-(accuracy or 0.0), row.error, row, student))
    tried.sort(key=lambda one: one[:2])
    return CalibrationChoice(tuple(row for *_, row, _ in tried), tried[0][3])
