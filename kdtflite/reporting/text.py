"""A report in the terminal: the models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from kdtflite.reporting.comparison import Cell, compare
from kdtflite.reporting.schema import check

__all__ = ["render_table"]

# What fits 80 characters; the page has the rest.
_COLUMNS = ("accuracy", "parameters", "bytes", "p50")


def render_table(report: Mapping[str, Any]) -> Table:
    """Returns the comparison of the report's models as a table for `rich.print`.

    The file to ship is marked with a star and the best value of each column with a tick, bold
    and green where there is colour.

    Args:
        report: As `schema.Report` describes it.

    Raises:
        DataError: It is no report of a version that this kdtflite can show.

    Example:
        >>> rich.print(render_table(json.loads(Path("runs/digits/report.json").read_text())))
    """
    check(report)
    comparison = compare(report)
    # Text, because a name such as "[red]" in a str would be taken for markup.
    table = Table(
        title=Text(str(report["name"])),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,  # its two blanks are what a name needs
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
        name.append(_short(row.label))
        table.add_row(name, *(_cell(row.cells[place]) for place, _ in shown))
    if any(row.shipped for row in comparison.rows):
        table.caption = Text("★ the file to ship; ✓ the best of its column")
        if choice := report.get("choice"):
            tried = len(choice.get("trials") or ())
            how = f"chosen by {tried} trials on the validation split" if tried else "without trials"
            table.caption.append(f"\nLosses: {choice['chosen']}, {how}")
        table.caption_justify = "left"
    return table


def _short(label: str) -> str:
    """Returns a model's label without what all students share, to stay on one line."""
    short = label.removeprefix("Student, ")
    return short[:1].upper() + short[1:]


def _cell(cell: Cell) -> Text:
    text = Text(
        f"✓ {cell.text}" if cell.best else cell.text, style="bold green" if cell.best else ""
    )
    if cell.note:
        text.append(f"\n{cell.note}", style="dim")
    return text
