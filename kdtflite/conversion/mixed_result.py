"""The result of mixed_precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdtflite.lite.model import LiteModel
from kdtflite.results import Axes, Result, Table, as_plain, make_axes, make_table

__all__ = ["MixedPrecision", "MixedStep", "narrow_type"]


def narrow_type(wide: str) -> str:
    """Returns the type of whatever is not widened."""
    return "int4" if wide == "int8" else "int8"


@dataclass(frozen=True)
class MixedStep:
    """A file on the way to the final one.

    Attributes:
        layer: The layer whose output, or weights, are wide from this step on; "" for none.
        operators: How many operators of the file compute in the wide type so far, or have wide
            weights.
        bytes: Size of the file.
        error: How far its outputs are from the float file's, by the measure.
        accuracy: Share of samples classified correctly, if labels were given.
        alone: The error if only this layer is wide.
    """

    layer: str
    operators: int
    bytes: int
    error: float
    accuracy: float | None = None
    alone: float | None = None


@dataclass(frozen=True)
class MixedPrecision(Result):
    """The file that `mixed_precision` made, and the steps to it.

    Attributes:
        file: The file.
        steps: The steps from a file in which nothing is wide to this one.
        wide: "int16" or "float32" activations, or "int8" weights.
        ranking: The error if only one layer is wide, by layer, the least first.
        left: Why a layer could not be widened, by layer.
        reached: Whether the tolerance was reached; None without a tolerance.
        accuracy_in_float: Accuracy of the float file, if labels were given.
        measure: What `error` measures: "mse" or "kl".
    """

    file: LiteModel = field(repr=False)
    steps: tuple[MixedStep, ...]
    wide: str
    ranking: dict[str, float]
    left: dict[str, str]
    reached: bool | None = None
    accuracy_in_float: float | None = None
    measure: str = "mse"

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the file's bytes as plain values for JSON."""
        return {
            "wide": self.wide,
            "measure": self.measure,
            "steps": as_plain(self.steps),
            "ranking": dict(self.ranking),
            "left": dict(self.left),
            "reached": self.reached,
            "accuracy_in_float": self.accuracy_in_float,
            "bytes": len(self.file.content),
        }

    def to_table(self) -> Table:
        """Returns a table with one row per step."""
        rows = (
            (
                step.layer or f"(all in {narrow_type(self.wide)})",
                str(step.operators),
                f"{step.bytes:,}",
                f"{step.error:.3g}",
                "" if step.accuracy is None else f"{step.accuracy:.2%}",
            )
            for step in self.steps
        )
        return make_table(
            rows,
            text=["layer"],
            numbers=("wide operators", "bytes", "error", "accuracy"),
            title=f"From {narrow_type(self.wide)}, the {self._what} of one layer after the other "
            f"kept in {self.wide}",
        )

    def summary(self) -> str:
        """Returns in one line how many activations, or weights, are wide, and what that did."""
        first, last = self.steps[0], self.steps[-1]
        missed = " The tolerance was not reached." if self.reached is False else ""
        return (
            f"Kept {len(self.steps) - 1} of {len(self.ranking)} {self._what} in {self.wide}: "
            f"error ({self.measure}) {first.error:.3g} in {narrow_type(self.wide)}, "
            f"{last.error:.3g} now; {first.bytes:,} and {last.bytes:,} bytes.{missed}"
        )

    @property
    def _what(self) -> str:
        return "weights" if self.wide == "int8" else "activations"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the error of each step against the bytes of its file.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        ax = make_axes(ax, 6, 4, xlabel="bytes", ylabel=f"error ({self.measure})")
        ax.plot([step.bytes for step in self.steps], [step.error for step in self.steps], "o-")
        for step in self.steps:
            ax.annotate(
                step.layer or f"(all in {narrow_type(self.wide)})",
                (step.bytes, step.error),
                textcoords="offset points",
                xytext=(5, 5),
                parse_math=False,
            )
        ax.set_ylim(bottom=0)
        return ax
