"""What every result of a public function can do."""

from __future__ import annotations

import abc
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from rich.table import Table
from rich.text import Text

from kdtflite.tables import as_text
from kdtflite.text import escape_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    Axes = Any  # matplotlib takes long to import, and is only needed to draw

__all__ = ["Axes", "Result", "Table", "as_plain", "make_axes", "make_table", "plot_bars"]


class Result(abc.ABC):
    """The base of what a public function found out: plain values, a table, a line and a plot.

    `print(result)` shows the table and the summary, and so does the last line of a notebook's
    cell. A plot is drawn on axes; `result.plot().figure.savefig("result.png")` saves it.
    """

    # Characters per line of the printed table.
    _table_width: ClassVar[int] = 100

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        values: dict[str, Any] = as_plain(
            {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        )
        return values

    @abc.abstractmethod
    def to_table(self) -> Table:
        """Returns the main numbers as a rich table."""

    @abc.abstractmethod
    def summary(self) -> str:
        """Returns what was found in one line, with notes on further lines where needed."""

    @abc.abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the result.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes drawn on.
        """

    def __str__(self) -> str:
        table = as_text(self.to_table(), width=self._table_width)
        return f"{table}\n{escape_controls(self.summary())}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def as_plain(value: Any) -> Any:
    """Returns dataclasses, mappings, sequences and arrays, nested in any way, as JSON values."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        # JSON's keys are strings.
        return {str(key): as_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def make_table(
    rows: Iterable[Iterable[str | Text]],
    *,
    text: Sequence[str] = (),
    numbers: Sequence[str] = (),
    notes: Sequence[str] = (),
    **options: Any,
) -> Table:
    """Returns a rich table.

    Args:
        rows: The cells of each row; a str is shown as it is, not read as markup.
        text: Titles of the first columns, whose text is folded where it is too long.
        numbers: Titles of the columns after them, aligned on the right.
        notes: Titles of the last columns, on the left again.
        **options: Options of rich's `Table`.
    """
    table = Table(**options)
    for title in text:
        table.add_column(title, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right")
    for title in notes:
        table.add_column(title)
    for row in rows:
        table.add_row(
            *(Text(escape_controls(cell)) if isinstance(cell, str) else cell for cell in row)
        )
    return table


def make_axes(
    ax: Axes | None, width: float, height: float, *, xlabel: str = "", ylabel: str = ""
) -> Axes:
    """Returns `ax`, or the axes of a new figure of this size in inches, with these labels."""
    if ax is None:
        # Not pyplot: it would keep the figure alive and may need a display.
        from matplotlib.figure import Figure

        ax = Figure(figsize=(width, height), layout="constrained").add_subplot()
    if xlabel:
        ax.set_xlabel(xlabel)
    if ylabel:
        ax.set_ylabel(ylabel)
    return ax


def plot_bars(bars: Sequence[tuple[str, float]], label: str, ax: Axes | None = None) -> Axes:
    """Draws named values as horizontal bars, the first on top, thirty at most.

    Args:
        bars: Name and value of each bar.
        label: What the values are.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes drawn on.
    """
    bars = bars[:30]
    ax = make_axes(ax, 7, 0.9 + 0.22 * len(bars), xlabel=label)
    places = range(len(bars))
    ax.barh(places, [value for _, value in bars], color="#2361ad")
    # parse_math=False: a layer called "$5" is not a formula.
    ax.set_yticks(places, [name for name, _ in bars], parse_math=False)
    ax.set_ylim(len(bars) - 0.4, -0.6)
    return ax
