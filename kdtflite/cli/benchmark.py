"""`kdtflite benchmark`: how fast a .tflite file is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "NAME", "command"]

NAME = "benchmark"
EPILOG = "Example: kdtflite benchmark model.tflite --threads 1 --threads 2"


def command(
    model: Annotated[Path, typer.Argument(help="A .tflite file.", metavar="MODEL")],
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads inside an invoke; again for more. [1 and all cores]"),
    ] = None,
    invokes: Annotated[
        int, typer.Option(help="Timed invokes, at least 200: p99 of fewer is noise.")
    ] = 200,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed invokes first.")] = 20,
    xnnpack: Annotated[
        bool, typer.Option("--xnnpack/--no-xnnpack", help="LiteRT's default delegate.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Times single invokes of a file: p50, p90, p99, the delegate, bytes, arena, the machine."""
    from kdtflite.cli.trial import load_tried
    from kdtflite.evaluation import benchmark

    result = benchmark(
        load_tried(
            model, kernels=("built-in kernels", "XNNPACK") if xnnpack else ("built-in kernels",)
        ),
        threads=threads or None,
        warmup=warmup,
        invokes=invokes,
        xnnpack=xnnpack,
    )
    if as_json:
        typer.echo(json.dumps({**result.to_dict(), "file": str(model)}, indent=2))
        return
    typer.echo(str(result))
