"""A report in the terminal: the models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from kdtflite.reporting.comparison import Cell, compare_models
from kdtflite.reporting.schema import Report, read_report
from kdtflite.reporting.variants import shorten_label
from kdtflite.reporting.verdict import judge
from kdtflite.text import escape_line

__all__ = ["render_table"]

# What fits 80 characters; the page has the rest.
_COLUMNS = ("accuracy", "parameters", "bytes", "p50")


def render_table(report: Mapping[str, Any] | Report) -> Table:
    """Returns the comparison of the report's models as a table for `rich.print`.

    The file to ship is marked with a star and the best value of each column with a tick, bold
    and green where there is color.

    Args:
        report: As `schema.Report` describes it.

    Raises:
        DataError: It is not a report that this kdtflite can show.

    Example:
        >>> from kdtflite.reporting import REPORT_VERSION, render_table
        >>> student = {"key": "distilled_int8", "label": "Student", "accuracy": 0.98}
        >>> report = {"version": REPORT_VERSION, "name": "digits", "models": [student]}
        >>> render_table(report).row_count
        1
    """
    report = read_report(report)
    comparison = compare_models(report)
    # Text, because a name such as "[red]" in a str would be read as markup.
    table = Table(
        title=Text(escape_line(report.name)),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,  # names need its two columns
        title_justify="left",
    )
    table.add_column("Model", overflow="fold")
    if comparison is None:
        return table
    shown = [
        (place, column) for place, column in enumerate(comparison.columns) if column.key in _COLUMNS
    ]
    for _, column in shown:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in comparison.rows:
        name = Text("★ " if row.shipped else "  ", style="bold" if row.shipped else "")
        name.append(escape_line(shorten_label(row.label)))
        table.add_row(name, *(_format_cell(row.cells[place]) for place, _ in shown))
    if any(row.shipped for row in comparison.rows):
        verdict = judge(report)
        ready = verdict is not None and verdict.ready
        star = "the file to ship" if ready else "the file chosen, not recommended"
        table.caption = Text(f"★ {star}; ✓ the best of its column")
        if report.selection is not None and report.selection.why:
            table.caption.append(f"\n{escape_line(report.selection.why)}")
        if choice := report.choice:
            tried = len(choice.trials)
            how = f"chosen by {tried} trials on the validation split" if tried else "without trials"
            table.caption.append(f"\nLosses: {escape_line(choice.chosen)}, {how}")
        table.caption_justify = "left"
    return table


def _format_cell(cell: Cell) -> Text:
    text = Text(
        f"✓ {cell.text}" if cell.best else cell.text, style="bold green" if cell.best else ""
    )
    if cell.note:
        text.append(f"\n{cell.note}", style="dim")
    return text
