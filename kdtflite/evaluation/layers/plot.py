"""A model's layers as a table, and a drawing of their SQNR, for few layers and for many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.text import Text

from kdtflite.results import Axes, Table, make_axes, make_table

__all__ = ["draw_sqnr", "make_layer_table"]

# Up to so many layers each has a line with its name; of more, the lowest ones are named.
_NAMED = 40
_LOWEST = 8
_LONGEST = 30
_COLOR, _LOW = "#2361ad", "#c2410c"


def make_layer_table(rows: Iterable[tuple[Any, ...]], *numbers: str) -> Table:
    """Returns a table with one row per layer or tensor.

    Args:
        rows: For each its name, whether it is bold, its operator ("" for an input), and numbers.
        *numbers: Titles of the numbers.
    """
    cells = (
        # Text: a name in brackets is no markup.
        (Text(name, style="bold" if bold else ""), operator or "input", *rest)
        for name, bold, operator, *rest in rows
    )
    table = make_table(
        cells, text=("layer", "operator"), numbers=numbers, box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.columns[0].max_width = 40
    for column in table.columns[1:]:
        column.no_wrap, column.overflow = True, "ellipsis"
    return table


def draw_sqnr(layers: Sequence[tuple[str, float]], ax: Axes | None = None) -> Axes:
    """Draws the SQNR of layers in execution order.

    Up to 40 layers stand below each other by name; of more, the lowest eight are named. A layer
    without any error is a hollow triangle at the edge.

    Args:
        layers: Name and SQNR in dB of each layer.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes drawn on.
    """
    few = len(layers) <= _NAMED
    ax = make_axes(ax, 7, 0.9 + 0.2 * len(layers) if few else 3.2 + 0.19 * _LOWEST)
    finite = [value for _, value in layers if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    margin = max(1.0, 0.04 * (high - low))
    edges = {math.inf: high + margin, -math.inf: low - margin}
    values = [edges.get(value, value) for _, value in layers]
    # Stable: of layers alike, the first ones.
    lowest = sorted(range(len(layers)), key=lambda place: layers[place][1])[:_LOWEST]
    places = range(1, len(layers) + 1)
    _draw_points(ax, list(places), values, [value for _, value in layers], few=few)
    if few:
        # parse_math: a layer called "$5" is no formula.
        ax.set_yticks(places, [_shorten(name) for name, _ in layers], parse_math=False)
        ax.set_ylim(len(layers) + 0.6, 0.4)
        ax.set_xlabel("SQNR in dB (higher is better)")
        ax.grid(axis="y", visible=False)
    else:
        _name_lowest(ax, layers, values, lowest)
        ax.set_xlim(0, len(layers) + 1)
        ax.margins(y=0.12)  # for the numbers below the lowest
        ax.set_xlabel("Layer, in execution order")
        ax.set_ylabel("SQNR in dB (higher is better)")
    return ax


def _draw_points(
    ax: Axes, places: list[int], values: list[float], true: list[float], *, few: bool
) -> None:
    line = (values, places) if few else (places, values)
    ax.plot(*line, color=_COLOR, linewidth=1, alpha=0.45, zorder=2)
    for marker, filled in (("o", True), ("^", False)):
        chosen = [i for i, value in enumerate(true) if math.isfinite(value) == filled]
        points = [values[i] for i in chosen], [places[i] for i in chosen]
        ax.plot(
            *(points if few else reversed(points)),
            marker,
            color=_COLOR,
            markersize=6 if few else 3.5,
            markerfacecolor=_COLOR if filled else "none",
            zorder=3,
        )


def _name_lowest(
    ax: Axes, layers: Sequence[tuple[str, float]], values: list[float], lowest: list[int]
) -> None:
    from matplotlib.lines import Line2D

    named = []
    for number, place in enumerate(sorted(lowest), start=1):
        ax.plot([place + 1], [values[place]], "o", color=_LOW, markersize=5.5, zorder=4)
        ax.annotate(
            str(number),
            (place + 1, values[place]),
            (0, -11),
            textcoords="offset points",
            ha="center",
            color=_LOW,
            fontsize=8,
        )
        name, value = layers[place]
        named.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker=f"${number}$",
                color=_LOW,
                label=f"{_shorten(name)}, {value:.1f} dB",
            )
        )
    drawn = ax.legend(
        handles=named,
        title="The lowest",
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1.02),
        frameon=False,
        borderaxespad=0,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def _shorten(name: str) -> str:
    # The end tells more: the layers of a block begin alike.
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
