"""The models side by side: one table for the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtflite.reporting.formatting import (
    as_number,
    compare_size,
    compare_speed,
    format_count,
    format_decimal,
    format_milliseconds,
    format_percent,
    format_points,
    format_short_count,
    format_significant,
    format_size,
)
from kdtflite.reporting.schema import ModelEntry, Report, read_report
from kdtflite.reporting.verdict import find_shipped_model

__all__ = ["Cell", "Column", "Comparison", "Row", "compare_models"]


@dataclass(frozen=True)
class Column:
    """A column of the table; `explanation` says in one line what it means."""

    key: str
    title: str
    explanation: str


@dataclass(frozen=True)
class Cell:
    """A value as text, a note to show under it, and whether it is the column's best."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A model, with one cell per column."""

    key: str
    label: str
    format: str
    file: str
    shipped: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Comparison:
    """The whole table, without columns for which no model has a value."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Measure:
    column: Column
    value: Callable[[ModelEntry], float | None]
    text: Callable[[Any], str]
    best: Callable[[Sequence[float]], float]
    note: Callable[[ModelEntry, ModelEntry | None], str] = lambda model, teacher: ""


def compare_models(report: Mapping[str, Any] | Report) -> Comparison | None:
    """Returns the comparison of the report's models, or None if it lists none."""
    report = read_report(report)
    models = report.models
    if not models:
        return None
    teacher = next((model for model in models if model.key == "teacher"), None)
    shipped = find_shipped_model(report)
    columns, table = [], []
    for measure in _MEASURES:
        values = [measure.value(model) for model in models]
        known = [value for value in values if value is not None]
        if not known:
            continue
        # With a single model, or equal values, nothing is marked.
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
            key=model.key,
            label=model.label or model.key,
            format=model.format,
            file=model.file or "",
            shipped=model is shipped,
            cells=tuple(cells[position] for cells in table),
        )
        for position, model in enumerate(models)
    )
    return Comparison(columns=tuple(columns), rows=rows)


def _compare_accuracy(model: ModelEntry, teacher: ModelEntry | None) -> str:
    own, best = as_number(model.accuracy), None if teacher is None else as_number(teacher.accuracy)
    if model is teacher or own is None or best is None:
        return ""
    return format_points(own - best)


def _compare_bytes(model: ModelEntry, teacher: ModelEntry | None) -> str:
    if teacher is None or model is teacher:
        return ""
    return compare_size(model.bytes, teacher.bytes)


def _compare_latency(model: ModelEntry, teacher: ModelEntry | None) -> str:
    if teacher is None or model is teacher:
        return ""
    return compare_speed(as_number(model.p50), as_number(teacher.p50))


def _write_tail(model: ModelEntry, teacher: ModelEntry | None) -> str:
    del teacher
    tail = as_number(None if model.latency_ms is None else model.latency_ms.p99)
    return f"p99 {format_significant(tail)} ms" if tail is not None else ""


_MEASURES = (
    _Measure(
        Column("accuracy", "Accuracy", "Share of test samples classified correctly"),
        lambda model: as_number(model.accuracy),
        format_percent,
        max,
        _compare_accuracy,
    ),
    _Measure(
        Column("macro_f1", "Macro F1", "Mean over the classes of the F1 score, from 0 to 1"),
        lambda model: as_number(model.macro_f1),
        format_decimal,
        max,
    ),
    _Measure(
        Column(
            "log_loss", "Log loss", "Mean −log of the true class's probability; lower is better"
        ),
        lambda model: as_number(model.log_loss),
        format_decimal,
        min,
    ),
    _Measure(
        Column("parameters", "Parameters", "Weights and biases in the model"),
        lambda model: as_number(model.parameters),
        format_count,
        min,
    ),
    _Measure(
        Column("bytes", "File size", "Size of the .tflite file"),
        lambda model: as_number(model.bytes),
        format_size,
        min,
        _compare_bytes,
    ),
    _Measure(
        Column("macs", "MACs", "Multiply-accumulate operations for one inference"),
        lambda model: as_number(model.macs),
        format_short_count,
        min,
    ),
    _Measure(
        Column("p50", "Latency p50", "Median time of one inference on the machine of this run"),
        lambda model: as_number(model.p50),
        format_milliseconds,
        min,
        _compare_latency,
    ),
    _Measure(
        Column("p90", "Latency p90", "Nine out of ten inferences are at least this fast"),
        lambda model: as_number(None if model.latency_ms is None else model.latency_ms.p90),
        format_milliseconds,
        min,
        _write_tail,
    ),
    _Measure(
        Column("arena_bytes", "Arena", "Working memory for the activations"),
        lambda model: as_number(model.arena_bytes),
        format_size,
        min,
    ),
)
