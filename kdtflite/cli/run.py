"""`kdtflite run`: a whole recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "NAME", "command"]

NAME = "run"
EPILOG = "Example: kdtflite run mnist --data auto --output runs/first"


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `recipes`) or a .yaml file.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|auto", help="Where the data set lies; auto downloads it. [from recipe]"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder. [runs/NAME]")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="In place of the recipe's seed.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start again, replacing what the folder holds.")
    ] = False,
    strategy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Who trains: none (one device), mirrored (all GPUs), multi_worker (the workers of "
            "TF_CONFIG), or auto.",
        ),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json.")] = False,
) -> None:
    """Runs a recipe: teacher, distilled student, proven int8 file, report.

    Resumable: stopped at any moment and started again with the same words, it goes on from the
    last finished stage, and inside a training from the last finished epoch.
    """
    from rich.console import Console

    import kdtflite
    from kdtflite.reporting import render_table

    result = kdtflite.run(
        recipe, output=output, data_path=data, force=force, seed=seed, strategy=strategy
    )
    if as_json:
        typer.echo(json.dumps(result.report, indent=2))
        return
    console = Console()
    console.print(render_table(result.report))
    console.print(f"File: {result.folder / 'student.tflite'}", highlight=False, soft_wrap=True)
    console.print(f"Report: {result.folder / 'report.html'}", highlight=False, soft_wrap=True)
