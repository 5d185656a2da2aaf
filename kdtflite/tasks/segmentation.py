"""Segmentation: a class for each pixel, or for each position of a sequence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdtflite.errors import DataError, ShapeMismatchError
from kdtflite.results import Axes, Result, Table, make_table, plot_bars
from kdtflite.tasks.base import (
    Answers,
    Task,
    find_threshold,
    find_worst,
    format_score,
    list_names,
    name_columns,
    read_finite,
)

__all__ = ["ClassOverlap", "Segmentation", "SegmentationEvaluation"]

_ROWS = 50


@dataclass(frozen=True)
class ClassOverlap:
    """How well the area of one class is found.

    Attributes:
        name: The class.
        iou: Intersection over union (Jaccard): true positives / (true positives + false positives
            + false negatives), over the pixels of all samples; None if neither the labels nor the
            model have the class.
        dice: 2 · true positives / (2 · true positives + false positives + false negatives), which
            is the F1 score of the pixels; None likewise.
        pixels: Number of pixels of the class in the labels.
    """

    name: str
    iou: float | None
    dice: float | None
    pixels: int


@dataclass(frozen=True, eq=False)
class SegmentationEvaluation(Result):
    """Results of a model that gives each pixel, or each position, a class.

    Attributes:
        model: What was evaluated, with its kernels.
        samples: Number of samples.
        pixels: Number of pixels that count; those of the ignored class do not.
        accuracy: Share of the pixels whose class is right.
        mean_iou: Mean of the classes' intersection over union, where they have one.
        mean_dice: Mean of the classes' Dice scores, where they have one.
        mean_sample_dice: Mean over the samples of the mean Dice score of the classes in it.
        ties: Number of pixels whose highest score several classes share; the first is taken, as
            `argmax` on a phone does.
        outputs: What a single output was taken for, "logits" (class 1 above 0) or "probabilities"
            (above 0.5); "scores" where each class has one.
        outputs_from: What that was read from.
        per_class: The overlap of every class.
        confusion: Pixels by true class (row) and predicted class (column), int64.
        worst: The samples with the lowest Dice scores, the worst first.
        predictions: Class of every pixel, shape (samples, ...), int64.
        notes: What a reader must know to interpret the numbers.
    """

    model: str
    samples: int
    pixels: int
    accuracy: float
    mean_iou: float
    mean_dice: float
    mean_sample_dice: float
    ties: int
    outputs: str
    outputs_from: str
    per_class: tuple[ClassOverlap, ...]
    confusion: np.ndarray = field(repr=False)
    worst: tuple[int, ...]
    predictions: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the single predictions as plain values for JSON."""
        values = super().to_dict()
        del values["predictions"]
        return values

    def to_table(self) -> Table:
        """Returns the overlaps as a rich table with one row per class."""
        rows: list[tuple[str, ...]] = [
            (each.name, format_score(each.iou), format_score(each.dice), f"{each.pixels:,}")
            for each in self.per_class[:_ROWS]
        ]
        if len(self.per_class) > _ROWS:
            rows.append((f"... {len(self.per_class) - _ROWS} more classes", *[""] * 3))
        return make_table(rows, text=["class"], numbers=("IoU", "Dice", "pixels"))

    def summary(self) -> str:
        """Returns the main numbers and the notes as a few lines of text."""
        lines = [
            f"{self.model}: mean Dice {self.mean_dice:.4f}, mean IoU {self.mean_iou:.4f}, pixel "
            f"accuracy {self.accuracy:.2%} on {self.samples:,} samples, {self.pixels:,} pixels",
            f"mean Dice per sample {self.mean_sample_dice:.4f}; worst samples: "
            f"{', '.join(map(str, self.worst))}",
            f"outputs taken as {self.outputs}: {self.outputs_from}",
        ]
        if self.ties:
            lines.append(
                f"{self.ties:,} pixels tie for the highest score; the first class is taken."
            )
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the intersection over union of each class, the worst on top, thirty at most."""
        bars = [(each.name, each.iou) for each in self.per_class if each.iou is not None]
        return plot_bars(sorted(bars, key=lambda bar: bar[1]), "intersection over union", ax)


class Segmentation(Task):
    """A class for each pixel or position.

    Args:
        ignore_class: The label of pixels that no figure counts, often 255; by default all count.
    """

    name = "segmentation"

    def __init__(self, ignore_class: int | None = None) -> None:
        self.ignore_class = ignore_class

    def read_labels(self, y: Any) -> np.ndarray:
        """Returns the classes, shape (samples, ...) without an axis of channels, int64.

        Raises:
            DataError: They are not whole numbers, or have no position axis.
        """
        labels = read_finite(y, "a class per pixel as labels, shape (samples, height, width)")
        if labels.ndim > 2 and labels.shape[-1] == 1:
            labels = labels[..., 0]
        if labels.ndim < 2 or (labels != np.round(labels)).any():
            raise DataError(
                "Expected a class per pixel as labels, whole numbers of shape (samples, height, "
                f"width). Received: dtype {labels.dtype}, shape {labels.shape}."
            )
        return labels.astype(np.int64)

    def measure(self, answers: Answers) -> SegmentationEvaluation:
        """Returns the overlaps; outputs have shape (samples, ..., classes), or one channel."""
        from sklearn.metrics import confusion_matrix

        y, outputs = answers.labels, answers.outputs
        if outputs.shape == y.shape:
            outputs = outputs[..., np.newaxis]
        if outputs.shape[:-1] != y.shape:
            raise ShapeMismatchError(
                f"Expected scores for each pixel of the labels, shape {y.shape} and the classes. "
                f"Received: outputs of shape {answers.outputs.shape}. Labels must have the size of "
                "the outputs."
            )
        said, ties, kind, source = _decide(outputs, answers)
        classes = max(outputs.shape[-1], 2)
        counts = np.ones(y.shape, bool) if self.ignore_class is None else y != self.ignore_class
        wrong = counts & ((y < 0) | (y >= classes))
        if wrong.any():
            sample = int(np.argwhere(wrong)[0][0])
            raise DataError(
                f"Labels out of range: expected classes from 0 to {classes - 1}, as the model "
                f"knows {classes}. Received: {y[wrong][0]} in sample {sample}, and "
                f"{int(wrong.sum()):,} such pixels in all. Pass ignore_class= if it stands for "
                "pixels that do not count."
            )
        if not counts.any():
            raise DataError("Expected pixels that count. Received: labels of the ignored class.")
        names = name_columns(answers.names, classes, "class")
        confusion = confusion_matrix(y[counts], said[counts], labels=list(range(classes)))
        iou, dice = _compute_overlaps(confusion)
        by_sample = np.array(
            [
                _compute_sample_dice(truth[counted], answer[counted], classes)
                for truth, answer, counted in zip(y, said, counts, strict=True)
            ]
        )
        known = by_sample[~np.isnan(by_sample)]
        return SegmentationEvaluation(
            model=answers.model,
            samples=len(y),
            pixels=int(counts.sum()),
            accuracy=float(np.trace(confusion) / confusion.sum()),
            mean_iou=float(np.nanmean(iou)),
            mean_dice=float(np.nanmean(dice)),
            mean_sample_dice=float(known.mean()),
            ties=int((ties & counts).sum()),
            outputs=kind,
            outputs_from=source,
            per_class=tuple(
                ClassOverlap(name, _as_known(i), _as_known(d), int(n))
                for name, i, d, n in zip(names, iou, dice, confusion.sum(axis=1), strict=True)
            ),
            confusion=confusion.astype(np.int64),
            worst=find_worst(-np.nan_to_num(by_sample, nan=1.0)),
            predictions=said,
            notes=_write_notes(names, confusion),
        )


def _decide(outputs: np.ndarray, answers: Answers) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Returns classes, ties, and what the outputs were taken for."""
    if outputs.shape[-1] > 1:
        best = outputs == outputs.max(axis=-1, keepdims=True)
        return outputs.argmax(axis=-1), best.sum(axis=-1) > 1, "scores", "one per class"
    single = outputs[..., 0]
    threshold, kind, source = find_threshold(single, answers)
    return (single > threshold).astype(np.int64), single == threshold, kind, source


def _compute_overlaps(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns IoU and Dice by class; NaN where neither side has the class."""
    both = np.diag(confusion).astype(np.float64)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return both / (sizes - both), 2 * both / sizes


def _compute_sample_dice(truth: np.ndarray, answer: np.ndarray, classes: int) -> float:
    """Returns the mean Dice score of the classes in one sample; NaN if no pixel counts."""
    if not truth.size:
        return float("nan")
    both = np.bincount(truth[truth == answer], minlength=classes)
    sizes = np.bincount(truth, minlength=classes) + np.bincount(answer, minlength=classes)
    present = sizes > 0
    return float((2 * both[present] / sizes[present]).mean())


def _as_known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _write_notes(names: tuple[str, ...], confusion: np.ndarray) -> tuple[str, ...]:
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    absent = [name for name, size in zip(names, sizes, strict=True) if not size]
    if not absent:
        return ()
    what = "Classes in neither the labels nor the answers, left out of the means"
    return (f"{what}: {list_names(absent)}.",)
