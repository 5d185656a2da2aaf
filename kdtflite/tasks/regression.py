"""Regression: numbers, in the units of the labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdtflite.errors import ShapeMismatchError
from kdtflite.results import Axes, Result, Table, make_axes, make_table
from kdtflite.tasks.base import Answers, Task, find_worst, list_names, name_columns, read_finite

__all__ = ["Regression", "RegressionEvaluation", "ValueErrors"]

_ROWS = 50
_POINTS = 5000


@dataclass(frozen=True)
class ValueErrors:
    """The errors of one value.

    Attributes:
        name: The value.
        mean_absolute_error: Mean of |output - label|, in the label's unit.
        root_mean_squared_error: Root of the mean of (output - label)², in the label's unit.
        r2: 1 - sum of (output - label)² / sum of (label - mean label)²; of labels that are all the
            same 1 if every output meets them, else 0.
        largest_error: The largest |output - label|.
        saturated: Share of the samples whose output is the least or the greatest number that the
            file can express; 0 for float.
    """

    name: str
    mean_absolute_error: float
    root_mean_squared_error: float
    r2: float
    largest_error: float
    saturated: float


@dataclass(frozen=True, eq=False)
class RegressionEvaluation(Result):
    """The errors of a model that gives numbers.

    Attributes:
        model: What was evaluated, with its kernels.
        samples: Number of samples.
        mean_absolute_error: Mean over samples and values, in the unit of the labels.
        root_mean_squared_error: Root of the mean over samples and values of the squared error.
        r2: Mean of the values' R².
        per_value: The errors of every value.
        step: The step between two numbers of a quantized output; None for float.
        worst: The samples with the largest mean absolute errors, the worst first.
        predictions: Outputs, shape (samples, values), float32.
        labels: Labels, shape (samples, values).
        notes: What a reader must know to interpret the numbers.
    """

    model: str
    samples: int
    mean_absolute_error: float
    root_mean_squared_error: float
    r2: float
    per_value: tuple[ValueErrors, ...]
    step: float | None
    worst: tuple[int, ...]
    predictions: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the single predictions and labels as plain values for JSON."""
        values = super().to_dict()
        del values["predictions"], values["labels"]
        return values

    def to_table(self) -> Table:
        """Returns the errors as a rich table with one row per value."""
        rows: list[tuple[str, ...]] = [
            (
                each.name,
                f"{each.mean_absolute_error:.4g}",
                f"{each.root_mean_squared_error:.4g}",
                f"{each.r2:.4f}",
                f"{each.largest_error:.4g}",
                f"{each.saturated:.1%}",
            )
            for each in self.per_value[:_ROWS]
        ]
        if len(self.per_value) > _ROWS:
            rows.append((f"... {len(self.per_value) - _ROWS} more values", *[""] * 5))
        return make_table(
            rows, text=["value"], numbers=("MAE", "RMSE", "R²", "largest", "saturated")
        )

    def summary(self) -> str:
        """Returns the main numbers and the notes as a few lines of text."""
        lines = [
            f"{self.model}: mean absolute error {self.mean_absolute_error:.4g}, root mean squared "
            f"error {self.root_mean_squared_error:.4g}, R² {self.r2:.4f} on {self.samples:,} "
            "samples",
            f"worst samples: {', '.join(map(str, self.worst))}",
        ]
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws outputs over labels, at most 5,000 points; a perfect model is the diagonal."""
        ax = make_axes(ax, 5, 5, xlabel="label", ylabel="output")
        labels, outputs = self.labels.ravel(), self.predictions.ravel()
        every = -(-len(labels) // _POINTS)
        ax.plot(labels[::every], outputs[::every], ".", color="#2361ad", alpha=0.5)
        ends = [min(labels.min(), outputs.min()), max(labels.max(), outputs.max())]
        ax.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
        ax.set_title(f"R² {self.r2:.4f}")
        return ax


class Regression(Task):
    """Numbers in the units of the labels: one per sample, a vector, or a whole map."""

    name = "regression"

    def read_labels(self, y: Any) -> np.ndarray:
        """Returns the numbers, shape (samples, ...), float64."""
        return read_finite(y, "numbers as labels, shape (samples, values)").astype(np.float64)

    def measure(self, answers: Answers) -> RegressionEvaluation:
        """Returns the errors; outputs and labels have one shape, but for an axis of size 1."""
        from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

        outputs, labels = answers.outputs, answers.labels
        if _drop_ones(outputs.shape) != _drop_ones(labels.shape):
            raise ShapeMismatchError(
                "Expected labels of the shape of the outputs. Received: outputs of shape "
                f"{outputs.shape}, labels of shape {labels.shape}."
            )
        samples = len(labels)
        given = outputs.reshape(samples, -1).astype(np.float64)
        wanted = labels.reshape(samples, -1)
        errors = np.abs(given - wanted)
        names = name_columns(answers.names, given.shape[1], "value")
        saturated = np.zeros(given.shape[1])
        if answers.limits is not None:
            low, high = (np.float32(limit) for limit in answers.limits)
            saturated = ((given <= low) | (given >= high)).mean(axis=0)
        absolute = mean_absolute_error(wanted, given, multioutput="raw_values")
        squared = mean_squared_error(wanted, given, multioutput="raw_values")
        shares = (
            np.ones(len(names))
            if samples == 1
            else r2_score(wanted, given, multioutput="raw_values")
        )
        return RegressionEvaluation(
            model=answers.model,
            samples=samples,
            mean_absolute_error=float(absolute.mean()),
            root_mean_squared_error=float(np.sqrt(squared.mean())),
            r2=float(shares.mean()),
            per_value=tuple(
                ValueErrors(name, float(a), float(np.sqrt(s)), float(r), float(m), float(c))
                for name, a, s, r, m, c in zip(
                    names, absolute, squared, shares, errors.max(axis=0), saturated, strict=True
                )
            ),
            step=answers.step,
            worst=find_worst(errors.mean(axis=1)),
            predictions=outputs.reshape(samples, -1),
            labels=wanted,
            notes=_write_notes(answers, float(np.sqrt(squared.mean())), names, saturated, wanted),
        )


def _drop_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *(size for size in shape[1:] if size != 1))


def _write_notes(
    answers: Answers,
    error: float,
    names: tuple[str, ...],
    saturated: np.ndarray,
    wanted: np.ndarray,
) -> tuple[str, ...]:
    notes = []
    if answers.step is not None:
        # Rounding to the nearest of evenly spaced numbers has a variance of step² / 12.
        least = answers.step / np.sqrt(12)
        notes.append(
            f"The output moves in steps of {answers.step:.4g}; rounding to them alone is a root "
            f"mean squared error of {least:.4g}, {least / error if error else 1:.0%} of what was "
            "measured."
        )
    cut = [name for name, share in zip(names, saturated, strict=True) if share > 0.01]
    if cut:
        notes.append(
            f"More than 1% of the outputs are at the end of what the file can express: "
            f"{list_names(cut)}. Calibrate with more samples, or with those of the whole range."
        )
    if len(wanted) == 1:
        notes.append("R² needs two samples or more; it counts as 1.")
        return tuple(notes)
    spreads = np.ptp(wanted, axis=0)
    same = [name for name, spread in zip(names, spreads, strict=True) if not spread]
    if same:
        notes.append(
            f"Values whose labels are all the same, so that R² says little: {list_names(same)}."
        )
    return tuple(notes)
