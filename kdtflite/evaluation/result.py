"""The result of `evaluate`: numbers, notes, a table and a plot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdtflite.results import Axes, Result, Table, make_axes, make_table

__all__ = ["ClassScores", "Evaluation"]

# A longer table is not readable; `to_dict` has every class.
_ROWS = 50


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class.

    Attributes:
        name: The class.
        precision: Share of the samples predicted as this class that belong to it; 0 if the
            class is never predicted.
        recall: Share of this class's samples that are predicted as it; 0 if it has no samples.
        f1: Harmonic mean of the two; 0 if both are 0.
        support: Number of samples of this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Evaluation(Result):
    """A classifier's results on one set of samples.

    Attributes:
        model: What was evaluated, with its kernels.
        samples: Number of samples.
        accuracy: Share of correct predictions; of classes with equal scores the first is taken,
            as `argmax` on a phone does.
        ties: Number of samples whose highest score several classes share.
        accuracy_if_ties_lost: Accuracy if every tied sample counts as wrong.
        accuracy_if_ties_won: Accuracy if a tied sample counts as right when the true class is
            among the tied ones.
        top_k: Share of samples whose true class is among the k highest scores, by k.
        log_loss: Mean negative log-probability of the true class, in nats.
        log_loss_floor: Least probability taken, so that a 0 in the output does not cost
            infinitely much: half a step of a quantized output, 1e-7 for float.
        outputs: What the model's outputs were taken for, "logits" or "probabilities".
        outputs_from: What that was read from.
        macro_precision: Mean of the classes' precision; classes without samples count as 0.
        macro_recall: Mean of the classes' recall, likewise.
        macro_f1: Mean of the classes' F1, likewise.
        per_class: Precision, recall and F1 of every class.
        confusion: Samples by true class (row) and predicted class (column), int64.
        predictions: Predicted class of every sample, shape (samples,), int64.
        notes: What a reader must know to interpret the numbers.
    """

    model: str
    samples: int
    accuracy: float
    ties: int
    accuracy_if_ties_lost: float
    accuracy_if_ties_won: float
    top_k: dict[int, float]
    log_loss: float
    log_loss_floor: float
    outputs: str
    outputs_from: str
    macro_precision: float
    macro_recall: float
    macro_f1: float
    per_class: tuple[ClassScores, ...]
    confusion: np.ndarray = field(repr=False)
    predictions: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class."""
        return tuple(scores.name for scores in self.per_class)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the single predictions as plain values for JSON."""
        values = super().to_dict()
        del values["predictions"]
        return values

    def to_table(self) -> Table:
        """Returns precision, recall and F1 as a rich table with one row per class."""
        macro = (self.macro_precision, self.macro_recall, self.macro_f1)
        mean = ClassScores("macro mean", *macro, support=self.samples)
        rows = [_format_row(scores) for scores in self.per_class[:_ROWS]]
        if len(self.per_class) > _ROWS:
            rows.append((f"... {len(self.per_class) - _ROWS} more classes",))
        table = make_table(rows, text=["class"], numbers=("precision", "recall", "F1", "samples"))
        table.add_section()
        table.add_row(*_format_row(mean))
        return table

    def summary(self) -> str:
        """Returns the main numbers and the notes as a few lines of text."""
        lines = [f"{self.model}: accuracy {self.accuracy:.2%} on {self.samples:,} samples"]
        if self.ties:
            lines.append(
                f"{self.ties:,} samples tie for the highest score; the first class is taken. "
                f"Accuracy {self.accuracy_if_ties_lost:.2%} if every tie were lost, "
                f"{self.accuracy_if_ties_won:.2%} if won."
            )
        for k, share in self.top_k.items():
            lines.append(f"top-{k} accuracy {share:.2%}")
        lines.append(
            f"log loss {self.log_loss:.4f} (outputs taken as {self.outputs}: {self.outputs_from})"
        )
        return "\n".join([*lines, *self.notes])

    def plot(self, ax: Axes | None = None, *, normalize: bool = True) -> Axes:
        """Draws the confusion matrix.

        Args:
            ax: Where to draw; by default a new figure.
            normalize: Show each row as shares instead of counts. A class without samples has
                an empty row.

        Returns:
            The axes drawn on.
        """
        side = min(16.0, 2.5 + 0.5 * len(self.per_class))
        ax = make_axes(ax, side, side, xlabel="predicted class", ylabel="true class")
        rows = self.confusion.sum(axis=1, keepdims=True)
        shown = self.confusion / np.maximum(rows, 1) if normalize else self.confusion
        image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else None)
        ax.figure.colorbar(image, ax=ax, fraction=0.046, label="share" if normalize else "samples")
        ticks = range(len(self.per_class))
        # parse_math=False: a class called "$5" is not a formula.
        ax.set_xticks(ticks, self.class_names, rotation=90, parse_math=False)
        ax.set_yticks(ticks, self.class_names, parse_math=False)
        ax.set_title(f"accuracy {self.accuracy:.2%}")
        if len(self.per_class) <= 20:
            dark = shown.max() / 2
            for (row, column), value in np.ndenumerate(shown):
                if value:
                    text = f"{value:.2f}" if normalize else str(value)
                    color = "white" if value > dark else "black"
                    ax.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
        return ax


def _format_row(scores: ClassScores) -> tuple[str, ...]:
    values = (scores.precision, scores.recall, scores.f1)
    return (scores.name, *(f"{value:.4f}" for value in values), str(scores.support))
