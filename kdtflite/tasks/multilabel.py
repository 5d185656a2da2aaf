"""Several labels at once: yes or no for each output."""

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

__all__ = ["LabelScores", "MultiLabel", "MultiLabelEvaluation"]

_ROWS = 50


@dataclass(frozen=True)
class LabelScores:
    """How well one label is found.

    Attributes:
        name: The label.
        precision: Share of the samples taken for it that have it; 0 if it is never said.
        recall: Share of the samples with it that are taken for it; 0 if no sample has it.
        f1: Harmonic mean of the two; 0 if both are 0.
        average_precision: Area under the curve of precision over recall, over all thresholds;
            None if no sample has the label.
        auc: Chance that a sample with the label gets a higher score than one without; None if all
            samples are alike.
        support: Number of samples with the label.
    """

    name: str
    precision: float
    recall: float
    f1: float
    average_precision: float | None
    auc: float | None
    support: int


@dataclass(frozen=True, eq=False)
class MultiLabelEvaluation(Result):
    """Results of a model that says yes or no for each of several labels.

    Attributes:
        model: What was evaluated, with its kernels.
        samples: Number of samples.
        exact_match: Share of samples of which every label is right.
        wrong_labels: Share of wrong answers among all (Hamming loss).
        micro_f1: F1 score of all answers together.
        macro_f1: Mean of the labels' F1 scores.
        mean_average_precision: Mean of the labels' average precision, where they have one.
        mean_auc: Mean of the labels' areas under the ROC curve, where they have one.
        undecided: Number of outputs exactly at the threshold, which count as no.
        outputs: What the outputs were taken for, "logits" (yes above 0) or "probabilities" (yes
            above 0.5).
        outputs_from: What that was read from.
        per_label: The scores of every label.
        worst: The samples with the most wrong labels, the worst first.
        predictions: Yes or no for every sample and label, shape (samples, labels), bool.
        notes: What a reader must know to interpret the numbers.
    """

    model: str
    samples: int
    exact_match: float
    wrong_labels: float
    micro_f1: float
    macro_f1: float
    mean_average_precision: float | None
    mean_auc: float | None
    undecided: int
    outputs: str
    outputs_from: str
    per_label: tuple[LabelScores, ...]
    worst: tuple[int, ...]
    predictions: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the single predictions as plain values for JSON."""
        values = super().to_dict()
        del values["predictions"]
        return values

    def to_table(self) -> Table:
        """Returns the scores as a rich table with one row per label."""
        rows = [
            (
                each.name,
                *(f"{value:.4f}" for value in (each.precision, each.recall, each.f1)),
                *(format_score(value) for value in (each.average_precision, each.auc)),
                str(each.support),
            )
            for each in self.per_label[:_ROWS]
        ]
        if len(self.per_label) > _ROWS:
            rows.append((f"... {len(self.per_label) - _ROWS} more labels", *[""] * 6))
        titles = ("precision", "recall", "F1", "avg. precision", "AUC", "samples")
        return make_table(rows, text=["label"], numbers=titles)

    def summary(self) -> str:
        """Returns the main numbers and the notes as a few lines of text."""
        lines = [
            f"{self.model}: mean average precision {format_score(self.mean_average_precision)}, "
            f"macro F1 {self.macro_f1:.4f}, micro F1 {self.micro_f1:.4f}, mean AUC "
            f"{format_score(self.mean_auc)} on {self.samples:,} samples",
            f"every label right: {self.exact_match:.2%}; wrong labels: {self.wrong_labels:.2%} "
            f"(outputs taken as {self.outputs}: {self.outputs_from})",
        ]
        if self.undecided:
            lines.append(f"{self.undecided:,} outputs are exactly at the threshold: they are no.")
        lines.append(f"worst samples: {', '.join(map(str, self.worst))}")
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the average precision of each label, the worst on top, thirty at most."""
        bars = [(each.name, each.average_precision or 0.0) for each in self.per_label]
        return plot_bars(sorted(bars, key=lambda bar: bar[1]), "average precision", ax)


class MultiLabel(Task):
    """Yes or no for each output, with any number of yeses per sample."""

    name = "multilabel"

    def read_labels(self, y: Any) -> np.ndarray:
        """Returns the labels, shape (samples, labels), bool.

        Raises:
            DataError: Anything but 0 and 1, or another shape.
        """
        labels = read_finite(y, "labels of 0 and 1, shape (samples, labels)")
        if labels.ndim == 1:
            labels = labels[:, np.newaxis]
        if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
            raise DataError(
                "Expected labels of 0 and 1, shape (samples, labels). Received: shape "
                f"{labels.shape}, values from {labels.min():g} to {labels.max():g}."
            )
        return labels.astype(bool)

    def measure(self, answers: Answers) -> MultiLabelEvaluation:
        """Returns the scores; outputs have shape (samples, labels)."""
        from sklearn.metrics import (
            accuracy_score,
            average_precision_score,
            f1_score,
            hamming_loss,
            precision_recall_fscore_support,
            roc_auc_score,
        )

        y = answers.labels
        outputs = answers.outputs.reshape(len(y), -1)
        if outputs.shape != y.shape:
            raise ShapeMismatchError(
                f"Expected one output per label, {y.shape[1]} in all. Received: outputs of shape "
                f"{answers.outputs.shape}."
            )
        threshold, kind, source = find_threshold(outputs, answers)
        said = outputs > threshold
        names = name_columns(answers.names, y.shape[1], "output")
        found = []
        for i, name in enumerate(names):
            has = y[:, i]
            precision, recall, f1, support = precision_recall_fscore_support(
                has, said[:, i], labels=[True], zero_division=0
            )
            area = None if has.all() or not has.any() else float(roc_auc_score(has, outputs[:, i]))
            average = float(average_precision_score(has, outputs[:, i])) if has.any() else None
            scores = (float(precision[0]), float(recall[0]), float(f1[0]))
            found.append(LabelScores(name, *scores, average, area, int(support[0])))
        return MultiLabelEvaluation(
            model=answers.model,
            samples=len(y),
            exact_match=float(accuracy_score(y, said)),
            wrong_labels=float(hamming_loss(y, said)),
            micro_f1=float(f1_score(y.ravel(), said.ravel(), zero_division=0)),
            macro_f1=float(np.mean([each.f1 for each in found])),
            mean_average_precision=_average([each.average_precision for each in found]),
            mean_auc=_average([each.auc for each in found]),
            undecided=int((outputs == threshold).sum()),
            outputs=kind,
            outputs_from=source,
            per_label=tuple(found),
            worst=find_worst((said != y).sum(axis=1)),
            predictions=said,
            notes=_write_notes(found, len(y)),
        )


def _average(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _write_notes(found: list[LabelScores], samples: int) -> tuple[str, ...]:
    notes = []
    for support, what in (
        (0, "Labels that no sample has, left out of the means of average precision and AUC"),
        (samples, "Labels that all samples have, left out of the mean AUC"),
    ):
        names = [each.name for each in found if each.support == support]
        if names:
            notes.append(f"{what}: {list_names(names)}.")
    return tuple(notes)
