"""Plots of a report's numbers, each made from plain data.

They are sized so that their text can be read on a phone. In a notebook run `%matplotlib inline`
first; the figures do not belong to pyplot's state and need not be closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kdtflite.errors import DataError
from kdtflite.reporting.formatting import as_number, format_size
from kdtflite.reporting.palette import INK, MATRIX, SERIES, use_style
from kdtflite.results import make_axes

__all__ = [
    "MARKERS",
    "WIDTH",
    "add_legend",
    "plot_accuracy_versus_latency",
    "plot_accuracy_versus_size",
    "plot_confusion_matrix",
    "plot_training_curves",
]

WIDTH = 4.2  # Inches: on a phone, 9 points are then about 10 pixels.
MARKERS = "osD^vPX*"  # one more than colors, so that no two of 56 series look alike
_MOST_CELLS_WITH_NUMBERS = 20  # Classes.
_MOST_TICKS = 34
_LONGEST_NAME = 18  # Characters.


def plot_accuracy_versus_size(
    models: Sequence[Mapping[str, Any]], *, samples: int | None = None, ax: Axes | None = None
) -> Axes:
    """Plots accuracy over file size, on a logarithmic axis.

    Filled markers are int8 files, hollow ones float. Models without both numbers are left out.

    Args:
        models: Dicts with `label`, `accuracy` (0 to 1), `bytes` and `format`, such as
            `report["models"]`.
        samples: How many test samples the accuracy was measured on; draws its 95 % interval.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes drawn on.

    Example:
        >>> from kdtflite.reporting import plot_accuracy_versus_size
        >>> model = {"label": "Student", "accuracy": 0.98, "bytes": 11_000, "format": "int8"}
        >>> plot_accuracy_versus_size([model], samples=450).get_ylabel()
        'Test accuracy'
    """
    return _plot_trade_off(
        models,
        lambda model: as_number(model.get("bytes")),
        "File size (log scale)",
        _format_size_tick,
        samples,
        ax,
    )


def plot_accuracy_versus_latency(
    models: Sequence[Mapping[str, Any]], *, samples: int | None = None, ax: Axes | None = None
) -> Axes:
    """Plots accuracy over the median latency, on a logarithmic axis.

    Args:
        models: Dicts with `label`, `accuracy` (0 to 1), `latency_ms` (a dict with `p50`) and
            `format`, such as `report["models"]`.
        samples: How many test samples the accuracy was measured on; draws its 95 % interval.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes drawn on.
    """
    return _plot_trade_off(
        models,
        lambda model: as_number((model.get("latency_ms") or {}).get("p50")),
        "Median latency in ms (log scale)",
        lambda value: f"{float(f'{value:.3g}'):g}",
        samples,
        ax,
    )


def plot_training_curves(
    history: Mapping[str, Sequence[float | None]], *, epochs: Sequence[int] | None = None
) -> Figure:
    """Plots a Keras history: every loss term, every metric and the learning rate.

    Validation is dashed, in the color of its training curve. None and NaN leave gaps.

    Args:
        history: For every key a list with one value per epoch, such as `fit(...).history`.
        epochs: The epochs' numbers; 1, 2, ... by default.

    Raises:
        DataError: The lists are of different lengths, or there are none.
    """
    lengths = {key: len(values) for key, values in history.items()}
    if epochs is not None:
        lengths["epochs"] = len(epochs)
    if not history or len(set(lengths.values())) > 1:
        raise DataError(
            "Training curves need one value per epoch for every key. "
            f"Received lengths: {lengths or 'an empty history'}."
        )
    along = np.asarray(epochs if epochs is not None else range(1, max(lengths.values()) + 1))
    panels = _group_into_panels(history)
    with use_style():
        figure = Figure(
            figsize=(WIDTH, 0.5 + sum(_PANEL_HEIGHTS[panel] for panel in panels)),
            layout="constrained",
        )
        drawn = figure.subplots(
            len(panels),
            1,
            sharex=True,
            squeeze=False,
            height_ratios=[_PANEL_HEIGHTS[panel] for panel in panels],
        )
        for axes, (panel, keys) in zip(drawn[:, 0], panels.items(), strict=True):
            _plot_curves(axes, along, {key: _as_floats(history[key]) for key in keys})
            axes.set_ylabel(panel)
            if panel == "Learning rate":
                axes.yaxis.set_major_locator(MaxNLocator(3))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.2g}"))
            elif panel == "Loss":
                _use_log_scale_if_wide(axes)
        drawn[-1, 0].set_xlabel("Epoch")
        drawn[-1, 0].xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    return figure


def plot_confusion_matrix(
    matrix: Sequence[Sequence[int]],
    class_names: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Plots a confusion matrix: true classes down, predicted classes across.

    The shade follows the share of the true class (its square root), so that rare classes and
    rare mistakes show too; up to 20 classes each cell carries its count.

    Args:
        matrix: Counts, shape (classes, classes).
        class_names: One name per class; the class numbers by default.
        ax: Where to draw; by default a new figure.

    Returns:
        The axes drawn on.

    Raises:
        DataError: The matrix is not square or the names are too few or too many.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise DataError(
            "A confusion matrix has one row and one column per class. "
            f"Received: shape {counts.shape}."
        )
    classes = len(counts)
    names = [str(name) for name in class_names] if class_names else [str(n) for n in range(classes)]
    if len(names) != classes:
        raise DataError(
            f"Expected a name for each of the {classes} classes of the confusion matrix. "
            f"Received: {len(names)} names."
        )
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    longest = min(_LONGEST_NAME, max(map(len, names)))
    side = WIDTH if classes <= 12 else 6.0
    with use_style():
        axes = make_axes(ax, side, side * 0.9, xlabel="Predicted class", ylabel="True class")
        # By the square root, since the few mistakes are what matters. "none" keeps one pixel per
        # cell in an SVG, where the default would resample to the figure's dpi.
        axes.imshow(shares, cmap=_make_shades(), norm=PowerNorm(0.5, 0, 1), interpolation="none")
        if classes <= _MOST_CELLS_WITH_NUMBERS:
            _write_counts(axes, counts, shares)
        step = math.ceil(classes / _MOST_TICKS)
        places = range(0, classes, step)
        shown = [_shorten(names[place], _LONGEST_NAME) for place in places]
        # parse_math: a class called "$5" is not a formula.
        small = 6.5 if classes > _MOST_CELLS_WITH_NUMBERS else 8.0
        steep = 0.0 if longest * classes <= 40 else 90.0
        axes.set_xticks(places, shown, rotation=steep, parse_math=False, fontsize=small)
        axes.set_yticks(places, shown, parse_math=False, fontsize=small)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(True)
    return axes


def _plot_trade_off(
    models: Sequence[Mapping[str, Any]],
    across: Callable[[Mapping[str, Any]], float | None],
    label: str,
    text: Callable[[float], str],
    samples: int | None,
    ax: Axes | None,
) -> Axes:
    points = []
    for place, model in enumerate(models):
        x, y = across(model), as_number(model.get("accuracy"))
        if x is not None and y is not None and x > 0:
            points.append((place, model, x, y))
    with use_style():
        height = 3.6 + 0.19 * len(points)
        axes = make_axes(ax, WIDTH, height, xlabel=label, ylabel="Test accuracy")
        axes.set_xscale("log")
        for place, model, x, y in points:
            color = SERIES[place % len(SERIES)]
            if samples:
                low, high = _compute_wilson_interval(y, samples)
                axes.vlines(x, low, high, colors=color, linewidth=1, alpha=0.55)
            axes.plot(
                [x],
                [y],
                MARKERS[place % len(MARKERS)],
                color=color,
                markersize=8.5,
                markeredgewidth=1.8,
                markerfacecolor=color if model.get("format") == "int8" else "none",
                label=_shorten(str(model.get("label") or model.get("key")), 48),
                zorder=3,
            )
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        if points:
            _set_log_ticks(axes, [x for _, _, x, _ in points], text)
            _cap_at_one(axes)
            add_legend(axes, columns=1)
    return axes


def _set_log_ticks(axes: Axes, values: list[float], text: Callable[[float], str]) -> None:
    low, high = min(values) / 1.7, max(values) * 1.7
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 2.6 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _format_size_tick(value: float) -> str:
    amount, _, unit = format_size(value).partition("\u00a0")
    return f"{float(amount):g} {unit}"


def _cap_at_one(axes: Axes) -> None:
    """Ends the axis just above 100 %, with room for a marker there."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 1 + (1 - low) * 0.04) if low < 1 else high)


def _compute_wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson 1927), which never leaves 0 to 1."""
    z = 1.96
    spread = 1 + z**2 / samples
    middle = (share + z**2 / (2 * samples)) / spread
    half = z * math.sqrt(share * (1 - share) / samples + z**2 / (4 * samples**2)) / spread
    return max(0.0, middle - half), min(1.0, middle + half)


_PANEL_HEIGHTS = {"Loss": 2.5, "Accuracy": 2.1, "Metric": 2.1, "Learning rate": 1.1}
_RATES = ("learning_rate", "lr")


def _group_into_panels(history: Mapping[str, Any]) -> dict[str, list[str]]:
    losses = [key for key in history if key.endswith("loss")]
    rates = [key for key in history if key in _RATES]
    others = [key for key in history if key not in losses and key not in rates]
    accuracies = all("accuracy" in key for key in others)
    panels = {
        "Loss": losses,
        "Accuracy" if accuracies else "Metric": others,
        "Learning rate": rates,
    }
    return {panel: keys for panel, keys in panels.items() if keys}


def _plot_curves(axes: Axes, along: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    colors: dict[str, str] = {}
    for key, values in curves.items():
        term = key.removeprefix("val_")
        color = colors.setdefault(term, SERIES[len(colors) % len(SERIES)])
        axes.plot(
            along,
            values,
            color=color,
            linestyle="--" if key.startswith("val_") else "-",
            linewidth=1.6,
            marker="o" if len(along) <= 15 else "",
            markersize=3.2,
            label=_name_curve(key),
        )
    if set(curves) - set(_RATES):
        add_legend(axes, columns=2)


def _name_curve(key: str) -> str:
    term = key.removeprefix("val_")
    if term == "loss":
        name = "Total"
    else:
        words = (term.removesuffix("_loss") or term).replace("_", " ")
        name = words[:1].upper() + words[1:]
    return f"{name}, validation" if key.startswith("val_") else name


def _use_log_scale_if_wide(axes: Axes) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log")
        axes.set_ylabel("Loss (log scale)")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    largest = len(f"{counts.max():.0f}")
    points = min(9.0, 130 / (len(counts) * max(2, largest)))
    for row, column in np.ndindex(counts.shape):
        value = counts[row, column]
        if value:
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=points,
                color="#ffffff" if shares[row, column] > 0.55 else INK,
            )


def _make_shades() -> LinearSegmentedColormap:
    # From transparent to opaque rather than from white to blue: correct on a dark page as well.
    color = to_rgb(MATRIX)
    return LinearSegmentedColormap.from_list("shares", [(*color, 0.0), (*color, 1.0)])


def _shorten(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _as_floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if (v := as_number(value)) is None else v for value in values])


def add_legend(axes: Axes, *, columns: int) -> None:
    """Puts the legend above a plot."""
    # Above the plot: beside it, it would take a phone's width; inside, it would hide points.
    drawn = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns, frameon=False, borderaxespad=0
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)
