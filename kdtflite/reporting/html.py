"""The report as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdtflite.files import refuse_existing, write_text
from kdtflite.reporting import formatting
from kdtflite.reporting.comparison import compare
from kdtflite.reporting.palette import CSS_NAMES
from kdtflite.reporting.schema import check
from kdtflite.reporting.sections import sections
from kdtflite.reporting.verdict import judge

__all__ = ["write_html"]


def write_html(
    report: Mapping[str, Any], path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Writes a report as one HTML file and returns its path.

    The page carries its style, plots and pictures inside and loads nothing: it works from a
    disk, in an e-mail and without a network, in light and dark, on a desk and on a phone. A
    section whose keys the report lacks is left out.

    Args:
        report: As `schema.Report` describes it; what `report.json` holds.
        path: Where to write the page.
        overwrite: Replace a file that stands there.

    Raises:
        DataError: `report` is no report of a version that this kdtflite can show.
        OutputExistsError: `path` exists and `overwrite` is False.

    Example:
        >>> report = json.loads(Path("runs/digits/report.json").read_text())
        >>> write_html(report, "runs/digits/report.html")
    """
    refuse_existing(path, overwrite=overwrite, option="overwrite=True")
    check(report)
    environment = Environment(
        loader=PackageLoader("kdtflite.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in formatting.__all__:
        environment.globals[name] = getattr(formatting, name)
    shown = sections(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        verdict=judge(report),
        comparison=compare(report),
        sections=shown,
        plot_colours=CSS_NAMES,
    )
    return write_text(path, page, overwrite=overwrite)
