"""What a run found out, as a page, a terminal table and plots.

    write_html(report, "report.html")       # one self-contained page
    render_table(report)                    # a rich table for the terminal
    accuracy_versus_size(report["models"])  # a matplotlib Figure, for notebooks

`schema.Report` documents the report, which is a plain dict as read from `report.json`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtflite.reporting.html import write_html
    from kdtflite.reporting.plots import (
        accuracy_versus_latency,
        accuracy_versus_size,
        confusion_matrix,
        training_curves,
    )
    from kdtflite.reporting.schema import REPORT_VERSION, Report
    from kdtflite.reporting.text import render_table

__all__ = [
    "REPORT_VERSION",
    "Report",
    "accuracy_versus_latency",
    "accuracy_versus_size",
    "confusion_matrix",
    "render_table",
    "training_curves",
    "write_html",
]

_HOMES = {
    "REPORT_VERSION": "schema",
    "Report": "schema",
    "accuracy_versus_latency": "plots",
    "accuracy_versus_size": "plots",
    "confusion_matrix": "plots",
    "render_table": "text",
    "training_curves": "plots",
    "write_html": "html",
}


def __getattr__(name: str) -> Any:
    # Late, because matplotlib takes most of a second and `kdtflite --help` needs none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
