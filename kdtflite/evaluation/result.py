"""What `evaluate` found: numbers, notes, a table and a plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdtflite.tables import as_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

__all__ = ["ClassScores", "Evaluation"]

# More rows than this are a file to read, not a table.
_ROWS = 50


@dataclass(frozen=True)
class ClassScores:
    """How well one class is found.

    Attributes:
        name: The class.
        precision: Share of the samples predicted as this class that are of it; 0 if none is
            predicted so.
        recall: Share of this class's samples that are predicted as it; 0 if it has none.
        f1: Harmonic mean of the two; 0 if both are 0.
        support: Number of samples of this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A classifier's results on one set of samples.

    Attributes:
        model: What was evaluated, with its kernels.
        samples: Number of samples.
        accuracy: Share of right predictions, taking the first of classes with equal scores, as
            `argmax` on a phone does.
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
        per_class: Precision, recall and F1 of every class.
        macro_precision: Mean of the classes' precision; classes without samples count as 0.
        macro_recall: Mean of the classes' recall, likewise.
        macro_f1: Mean of the classes' F1, likewise.
        confusion: Samples by true class (row) and predicted class (column), int64.
        predictions: Predicted class of every sample, shape (samples,), int64.
        notes: What a reader must know to read the numbers right.
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
    per_class: tuple[ClassScores, ...]
    macro_precision: float
    macro_recall: float
    macro_f1: float
    confusion: np.ndarray = field(repr=False)
    predictions: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class."""
        return tuple(scores.name for scores in self.per_class)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the single predictions as plain values for JSON."""
        return {
            "model": self.model,
            "samples": self.samples,
            "accuracy": self.accuracy,
            "ties": self.ties,
            "accuracy_if_ties_lost": self.accuracy_if_ties_lost,
            "accuracy_if_ties_won": self.accuracy_if_ties_won,
            "top_k": {str(k): share for k, share in self.top_k.items()},
            "log_loss": self.log_loss,
            "log_loss_floor": self.log_loss_floor,
            "outputs": self.outputs,
            "outputs_from": self.outputs_from,
            "macro_precision": self.macro_precision,
            "macro_recall": self.macro_recall,
            "macro_f1": self.macro_f1,
            "per_class": [asdict(scores) for scores in self.per_class],
            "confusion": self.confusion.tolist(),
            "notes": list(self.notes),
        }

    def to_table(self) -> Table:
        """Returns precision, recall and F1 by class as a rich table."""
        from rich.table import Table

        table = Table(title=None, caption_justify="left")
        table.add_column("class")
        for column in ("precision", "recall", "F1", "samples"):
            table.add_column(column, justify="right")
        for scores in self.per_class[:_ROWS]:
            table.add_row(*_row(scores), end_section=scores is self.per_class[-1])
        if len(self.per_class) > _ROWS:
            left = len(self.per_class) - _ROWS
            table.add_row(f"... {left} more classes", "", "", "", "", end_section=True)
        macro = (self.macro_precision, self.macro_recall, self.macro_f1)
        table.add_row("macro mean", *(f"{value:.4f}" for value in macro), str(self.samples))
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

    def __str__(self) -> str:
        return f"{self.summary()}\n{as_text(self.to_table())}"

    def plot_confusion_matrix(self, ax: Axes | None = None, *, normalize: bool = True) -> Axes:
        """Draws the confusion matrix.

        Args:
            ax: Where to draw; by default a new figure.
            normalize: Colour and write each row's shares instead of counts. A class without
                samples has an empty row.

        Returns:
            The axes drawn on.
        """
        if ax is None:
            from matplotlib.figure import Figure

            # Not pyplot: it would keep the figure alive and may want a display.
            side = min(16.0, 2.5 + 0.5 * len(self.per_class))
            ax = Figure(figsize=(side, side), layout="constrained").add_subplot()
        rows = self.confusion.sum(axis=1, keepdims=True)
        shown = self.confusion / np.maximum(rows, 1) if normalize else self.confusion
        image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else None)
        ax.figure.colorbar(image, ax=ax, fraction=0.046, label="share" if normalize else "samples")
        ticks = range(len(self.per_class))
        ax.set_xticks(ticks, self.class_names, rotation=90)
        ax.set_yticks(ticks, self.class_names)
        ax.set_xlabel("predicted class")
        ax.set_ylabel("true class")
        ax.set_title(f"accuracy {self.accuracy:.2%}")
        if len(self.per_class) <= 20:
            dark = shown.max() / 2
            for (row, column), value in np.ndenumerate(shown):
                if value:
                    text = f"{value:.2f}" if normalize else str(value)
                    colour = "white" if value > dark else "black"
                    ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        return ax


def _row(scores: ClassScores) -> tuple[str, ...]:
    values = (scores.precision, scores.recall, scores.f1)
    return (scores.name, *(f"{value:.4f}" for value in values), str(scores.support))
