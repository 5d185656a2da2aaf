"""Plot of the trials by which losses were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kdtflite.reporting.formatting import number, significant
from kdtflite.reporting.palette import SERIES
from kdtflite.reporting.plots import MARKERS, WIDTH, legend, style

__all__ = ["trial_curves"]


def trial_curves(trials: Sequence[Mapping[str, Any]], *, chosen: str | None = None) -> Figure:
    """Plots the validation accuracy of each candidate over the rungs of its trials.

    A candidate's line ends where it was left out; the chosen one's is thick, its markers filled.

    Args:
        trials: Dicts with `candidate`, `rung`, `epochs` and `accuracy`, such as
            `report["choice"]["trials"]`.
        chosen: Name of the chosen candidate.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    lengths: dict[int, float] = {}
    for trial in trials:
        accuracy = number(trial.get("accuracy"))
        lengths[trial["rung"]] = trial["epochs"]
        points = lines.setdefault(str(trial["candidate"]), [])
        if accuracy is not None:
            points.append((trial["rung"], accuracy))
    with style():
        figure = Figure(figsize=(WIDTH, 2.8 + 0.19 * len(lines)), layout="constrained")
        axes = figure.subplots()
        for place, (name, points) in enumerate(lines.items()):
            colour = SERIES[place % len(SERIES)]
            axes.plot(
                [rung for rung, _ in points],
                [accuracy for _, accuracy in points],
                marker=MARKERS[place % len(MARKERS)],
                color=colour,
                linewidth=2.6 if name == chosen else 1.2,
                markersize=7,
                markerfacecolor=colour if name == chosen else "none",
                label=f"{name} (chosen)" if name == chosen else name,
                zorder=3 if name == chosen else 2,
            )
        axes.set_xticks(
            list(lengths), [f"{rung}\n{significant(lengths[rung], 2)}" for rung in lengths]
        )
        axes.margins(x=0.12)
        axes.set_xlabel("Rung, and epochs of its runs")
        axes.set_ylabel("Validation accuracy")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        legend(axes, columns=1)
    return figure
