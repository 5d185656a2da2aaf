"""What `run` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtflite.lite.model import LiteModel
from kdtflite.results import Axes, Result, Table

if TYPE_CHECKING:
    from kdtflite.reporting.schema import Selection

__all__ = ["SHIPPED", "RunResult"]

SHIPPED = "student.tflite"
"""The file to ship, at the top of the run's folder."""


@dataclass(frozen=True)
class RunResult(Result):
    """A finished run.

    Attributes:
        folder: The run's folder.
        report: The content of report.json.
    """

    folder: Path
    report: dict[str, Any]

    @property
    def html(self) -> Path:
        """Path of the report as an HTML page."""
        return self.folder / "report.html"

    @property
    def lite(self) -> LiteModel:
        """The file to ship: the best of those that the run made, by validation accuracy."""
        return LiteModel.load(self.folder / SHIPPED)

    @property
    def selection(self) -> Selection:
        """Which file that is, why, and whether it is recommended at all."""
        from kdtflite.reporting.schema import Selection

        return Selection.model_validate(self.report["selection"])

    def to_dict(self) -> dict[str, Any]:
        """Returns the report."""
        return self.report

    def to_table(self) -> Table:
        """Returns the run's models as a rich table with one row per model."""
        from kdtflite.reporting import render_table

        return render_table(self.report)

    def summary(self) -> str:
        """Returns where the file to ship and the report are, in one line."""
        selection = self.selection
        doubt = "" if selection.recommended else " (not recommended)"
        return f"File: {self.folder / SHIPPED}, {selection.chosen}{doubt}. Report: {self.html}."

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the accuracy of the run's models against their file size.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """
        from kdtflite.reporting import plot_accuracy_versus_size
        from kdtflite.reporting.schema import read_report

        samples = read_report(self.report).test_samples
        return plot_accuracy_versus_size(self.report["models"], samples=samples or None, ax=ax)
