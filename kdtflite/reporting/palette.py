"""The colors and the style of the plots, and the CSS variables that replace them in the page.

A figure is drawn in these colors; in the page each becomes `var(--plot-...)`, with this color
in the light theme and a lighter one in the dark theme (`report.css.j2`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib

__all__ = ["CSS_NAMES", "GRID", "INK", "MATRIX", "SERIES", "use_style"]

INK = "#1f2a37"
GRID = "#dde3ea"
MATRIX = "#174a8b"
SERIES = ("#2361ad", "#c2410c", "#15795a", "#8b3fa0", "#a16207", "#be2a4b", "#4b5563")

CSS_NAMES = {
    INK: "--plot-ink",
    GRID: "--plot-grid",
    **{color: f"--plot-{place}" for place, color in enumerate(SERIES, start=1)},
}


@contextmanager
def use_style() -> Iterator[None]:
    """Applies the style of the report to what is drawn in the block."""
    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 8.5,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "axes.titlesize": 10,
    }
    with matplotlib.rc_context(settings):
        yield
