"""`kdtflite run`: a recipe, from the teacher to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdtflite.cli.options import AsJson, show

__all__ = ["EPILOG", "NAME", "command"]

NAME = "run"
EPILOG = "Example: kdtflite run mnist --data auto --output runs/first"


def command(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name (see kdtflite recipes) or a .yaml file.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|auto",
            help="Where the data set is; auto downloads it.",
            show_default="from the recipe",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run's folder.", show_default="runs/NAME"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="A seed in place of the recipe's.")
    ] = None,
    labeled: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="The share of the training samples that keep their label. The teacher alone "
            "teaches on the others; with 1, all keep it.",
            show_default="from the recipe",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start again and replace what the folder holds.")
    ] = False,
    strategy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The devices that train: none (one device), mirrored (all GPUs), multi_worker "
            "(the workers of TF_CONFIG), or auto.",
        ),
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Runs a recipe: teacher, distilled student, proven int8 file, report.

    Resumable: after an interruption, the same command continues with the first unfinished stage.
    A training continues with its first unfinished epoch.
    """
    from rich.console import Console

    import kdtflite
    from kdtflite.leftovers import collect_temporary_files
    from kdtflite.reporting import render_table

    with collect_temporary_files("run"):
        result = kdtflite.run(
            recipe,
            output=output,
            data_path=data,
            seed=seed,
            labeled=labeled,
            force=force,
            strategy=strategy,
        )
    if as_json:
        show(json.dumps(result.report, indent=2))
        return
    console = Console()
    console.print(render_table(result.report))
    show(f"File: {result.folder / 'student.tflite'}")
    show(f"Report: {result.folder / 'report.html'}")
