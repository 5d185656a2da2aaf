"""The models side by side: one table, shown by the page and by the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtflite.reporting.formatting import (
    compare_size,
    compare_speed,
    count,
    decimal,
    milliseconds,
    number,
    percent,
    points,
    short_count,
    significant,
    size,
)
from kdtflite.reporting.verdict import shipped_model

__all__ = ["Cell", "Column", "Comparison", "Row", "compare"]


@dataclass(frozen=True)
class Column:
    """What a column shows; `explanation` is one line on what it means."""

    key: str
    title: str
    explanation: str


@dataclass(frozen=True)
class Cell:
    """A value as text, what to say under it, and whether it is the column's best."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A model; `cells` follow the columns."""

    key: str
    label: str
    format: str
    file: str
    shipped: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """The whole table; a column that no model has a value for is not in it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Measure:
    column: Column
    value: Callable[[Mapping[str, Any]], float | None]
    text: Callable[[Any], str]
    best: Callable[[Sequence[float]], float]
    note: Callable[[Mapping[str, Any], Mapping[str, Any]], str]


def compare(report: Mapping[str, Any]) -> Comparison | None:
    """Returns the comparison of the report's models, or None if it lists none."""
    models = list(report.get("models") or ())
    if not models:
        return None
    teacher: Mapping[str, Any] = next(
        (model for model in models if model.get("key") == "teacher"), {}
    )
    shipped = shipped_model(report)
    columns, table = [], []
    for measure in _MEASURES:
        values = [measure.value(model) for model in models]
        known = [value for value in values if value is not None]
        if not known:
            continue
        # One model, or all equal: nothing stands out, so nothing is marked.
        best = measure.best(known) if len(set(known)) > 1 else None
        columns.append(measure.column)
        table.append(
            [
                Cell(
                    text=measure.text(value),
                    note=measure.note(model, teacher) if value is not None else "",
                    best=best is not None and value == best,
                )
                for model, value in zip(models, values, strict=True)
            ]
        )
    rows = tuple(
        Row(
            key=str(model.get("key", "")),
            label=str(model.get("label") or model.get("key", "")),
            format=str(model.get("format", "")),
            file=str(model.get("file") or ""),
            shipped=model is shipped,
            cells=tuple(cells[position] for cells in table),
        )
        for position, model in enumerate(models)
    )
    return Comparison(columns=tuple(columns), rows=rows)


def _field(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda model: number(model.get(key))


def _p50(model: Mapping[str, Any]) -> float | None:
    return number((model.get("latency_ms") or {}).get("p50"))


def _no_note(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    return ""


def _accuracy_note(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    own, best = number(model.get("accuracy")), number(teacher.get("accuracy"))
    if model is teacher or own is None or best is None:
        return ""
    return points(own - best)


def _bytes_note(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    return "" if model is teacher else compare_size(model.get("bytes"), teacher.get("bytes"))


def _latency_note(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    return "" if model is teacher else compare_speed(_p50(model), _p50(teacher))


def _tail_note(model: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    latency = model.get("latency_ms") or {}
    tail = number(latency.get("p99"))
    return f"p99 {significant(tail)} ms" if tail is not None else ""


_MEASURES = (
    _Measure(
        Column("accuracy", "Accuracy", "Share of test samples classified right"),
        _field("accuracy"),
        percent,
        max,
        _accuracy_note,
    ),
    _Measure(
        Column("macro_f1", "Macro F1", "Mean over the classes of the F1 score, from 0 to 1"),
        _field("macro_f1"),
        decimal,
        max,
        _no_note,
    ),
    _Measure(
        Column(
            "log_loss", "Log loss", "Mean −log of the true class's probability; lower is better"
        ),
        _field("log_loss"),
        decimal,
        min,
        _no_note,
    ),
    _Measure(
        Column("parameters", "Parameters", "Weights and biases in the model"),
        _field("parameters"),
        count,
        min,
        _no_note,
    ),
    _Measure(
        Column("bytes", "File size", "Size of the .tflite file"),
        _field("bytes"),
        size,
        min,
        _bytes_note,
    ),
    _Measure(
        Column("macs", "MACs", "Multiply-accumulate operations for one inference"),
        _field("macs"),
        short_count,
        min,
        _no_note,
    ),
    _Measure(
        Column("p50", "Latency p50", "Median time of one inference on the machine of this run"),
        _p50,
        milliseconds,
        min,
        _latency_note,
    ),
    _Measure(
        Column("p90", "Latency p90", "Nine inferences in ten are at least this fast"),
        lambda model: number((model.get("latency_ms") or {}).get("p90")),
        milliseconds,
        min,
        _tail_note,
    ),
    _Measure(
        Column("arena_bytes", "Arena", "Working memory for the activations"),
        _field("arena_bytes"),
        size,
        min,
        _no_note,
    ),
)
