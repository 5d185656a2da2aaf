"""Plot of the trials by which losses were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kdtflite.reporting.formatting import as_number, format_significant
from kdtflite.reporting.palette import SERIES, use_style
from kdtflite.reporting.plots import MARKERS, WIDTH, add_legend
from kdtflite.results import make_axes

__all__ = ["plot_trial_curves"]


def plot_trial_curves(
    trials: Sequence[Mapping[str, Any]], *, chosen: str | None = None, ax: Axes | None = None
) -> Axes:
    """Plots the validation accuracy of each candidate over the rungs of its trials.

    A candidate's line ends where it was left out; the chosen one's is thick, its markers filled.

    Args:
        trials: Dicts with `candidate`, `rung`, `epochs` and `accuracy`, such as
            `report["choice"]["trials"]`.
        chosen: Name of the chosen candidate.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes drawn on.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    lengths: dict[int, float] = {}
    for trial in trials:
        accuracy = as_number(trial.get("accuracy"))
        lengths[trial["rung"]] = trial["epochs"]
        points = lines.setdefault(str(trial["candidate"]), [])
        if accuracy is not None:
            points.append((trial["rung"], accuracy))
    with use_style():
        axes = make_axes(ax, WIDTH, 2.8 + 0.19 * len(lines))
        for place, (name, points) in enumerate(lines.items()):
            color = SERIES[place % len(SERIES)]
            axes.plot(
                [rung for rung, _ in points],
                [accuracy for _, accuracy in points],
                marker=MARKERS[place % len(MARKERS)],
                color=color,
                linewidth=2.6 if name == chosen else 1.2,
                markersize=7,
                markerfacecolor=color if name == chosen else "none",
                label=f"{name} (chosen)" if name == chosen else name,
                zorder=3 if name == chosen else 2,
            )
        axes.set_xticks(
            list(lengths), [f"{rung}\n{format_significant(lengths[rung], 2)}" for rung in lengths]
        )
        axes.margins(x=0.12)
        axes.set_xlabel("Rung, and epochs of its runs")
        axes.set_ylabel("Validation accuracy")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        add_legend(axes, columns=1)
    return axes
