"""The colours of the plots, and the names under which the page replaces them in dark mode.

A Figure is drawn in these colours; in the page every one becomes `var(--plot-...)`, with
this colour in the light theme and a lighter one in the dark theme (`report.css.j2`).
"""

from __future__ import annotations

__all__ = ["CSS_NAMES", "GRID", "INK", "MATRIX", "SERIES"]

INK = "#1f2a37"
GRID = "#dde3ea"
MATRIX = "#174a8b"
SERIES = ("#2361ad", "#c2410c", "#15795a", "#8b3fa0", "#a16207", "#be2a4b", "#4b5563")

CSS_NAMES = {
    INK: "--plot-ink",
    GRID: "--plot-grid",
    **{colour: f"--plot-{place}" for place, colour in enumerate(SERIES, start=1)},
}
