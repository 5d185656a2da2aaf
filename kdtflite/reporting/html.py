"""The report as one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdtflite.files import refuse_existing, write_text
from kdtflite.reporting import formatting
from kdtflite.reporting.comparison import compare_models
from kdtflite.reporting.palette import CSS_NAMES
from kdtflite.reporting.schema import Report, read_report
from kdtflite.reporting.sections import make_sections
from kdtflite.reporting.verdict import judge
from kdtflite.text import escape_controls

__all__ = ["write_html"]


def write_html(
    report: Mapping[str, Any] | Report, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Writes a report as one HTML file and returns its path.

    The page contains its style, plots and pictures and loads nothing: it works from a disk, in
    an e-mail and without a network, in light and dark mode, on a desktop and on a phone. A
    section whose keys the report lacks is left out.

    Args:
        report: The content of `report.json`, as `schema.Report` describes it.
        path: Where to write the page.
        overwrite: Replace an existing file.

    Raises:
        DataError: `report` is not a report that this kdtflite can show.
        OutputExistsError: `path` exists and `overwrite` is False.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from kdtflite.reporting import REPORT_VERSION, write_html
        >>> report = {"version": REPORT_VERSION, "name": "digits"}
        >>> write_html(report, Path(tempfile.mkdtemp(), "report.html")).name
        'report.html'
    """
    refuse_existing(path, overwrite=overwrite, option="overwrite=True")
    report = read_report(report)
    environment = Environment(
        loader=PackageLoader("kdtflite.reporting", ""),
        autoescape=True,
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in formatting.__all__:
        environment.globals[name] = getattr(formatting, name)
    shown = make_sections(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        verdict=judge(report),
        comparison=compare_models(report),
        sections=shown,
        plot_colors=CSS_NAMES,
    )
    return write_text(path, page, overwrite=overwrite)


def _escape(value: Any) -> Any:
    """Returns a text with its control characters shown; a plot has none."""
    return escape_controls(value) if type(value) is str else value
