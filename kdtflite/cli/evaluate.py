"""`kdtflite evaluate`: how often a .tflite file is right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kdtflite.errors import DataError
from kdtflite.pictures import check_picture, save_picture

__all__ = ["EPILOG", "NAME", "command"]

NAME = "evaluate"
EPILOG = "Example: kdtflite evaluate model.tflite --data test.npz --plot confusion.png"


def command(
    model: Annotated[Path, typer.Argument(help="A .tflite file.", metavar="MODEL")],
    data: Annotated[
        str,
        typer.Option(
            help="Labelled samples: an .npz file with x and y (or x_test and y_test), an image "
            "folder of class sub-folders, or a named data set, of which the test split is taken."
        ),
    ],
    data_path: Annotated[
        str, typer.Option(metavar="PATH|auto", help="Where a named data set lies.")
    ] = "auto",
    input_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="What the model was trained on; images and bytes are scaled to it. [0 1]",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Interpreters side by side. [one a core]")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write the confusion matrix as a picture (.png, .svg).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measures accuracy, precision, recall, F1, the confusion matrix and log loss of a file."""
    if plot is not None:
        check_picture(plot, overwrite=force, option="--force")
    from kdtflite.cli.samples import expected_by, read_samples
    from kdtflite.cli.trial import load_tried
    from kdtflite.evaluation import evaluate

    lite = load_tried(model, kernels=("XNNPACK",))
    read = read_samples(
        data,
        lambda: expected_by(lite),
        part="test",
        data_path=data_path,
        input_range=input_range,
    )
    if read.y is None:
        raise DataError(
            f"Expected labels beside the samples in {data}: an array y or y_test. Received: none."
        )
    classes = lite.outputs[0].shape[-1] if lite.outputs[0].shape else 0
    # Names of other classes than the model's would only hide that the labels do not fit.
    names = read.class_names if len(read.class_names) == classes else None
    result = replace(
        evaluate(lite, (read.x, read.y), labels=names, workers=workers),
        model=f"{model} ({len(lite.content):,} bytes, LiteRT, default kernels)",
    )
    if plot is not None:
        save_picture(result.plot_confusion_matrix(), plot, overwrite=force)
    if as_json:
        typer.echo(json.dumps({**result.to_dict(), "file": str(model)}, indent=2))
        return
    typer.echo(str(result))
    if plot is not None:
        typer.echo(f"Confusion matrix: {plot}")
