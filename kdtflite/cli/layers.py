"""`kdtflite layers`: where the accuracy goes, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdtflite.errors import ConfigurationError
from kdtflite.pictures import check_picture

__all__ = ["EPILOG", "NAME", "command"]

NAME = "layers"
EPILOG = "Example: kdtflite layers student.keras student.tflite --data test.npz --plot layers.png"


def command(
    model: Annotated[
        Path,
        typer.Argument(
            help="The Keras model that the file was converted from (.keras, .h5, SavedModel).",
            metavar="MODEL",
        ),
    ],
    lite: Annotated[Path, typer.Argument(help="Its .tflite file.", metavar="FILE")],
    data: Annotated[
        str,
        typer.Option(
            help="Samples: an .npz file, an image folder of class sub-folders, or a named data "
            "set, of which the test split is taken."
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
    samples: Annotated[int, typer.Option(min=1, help="The most samples to compare on.")] = 128,
    xnnpack: Annotated[
        bool, typer.Option("--xnnpack/--no-xnnpack", help="LiteRT's default delegate.")
    ] = True,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Compare a quantization-aware MODEL with the file code by code instead, and name "
            "the first tensor that differs by more than so many steps.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the layers' SQNR as a picture (.png, .svg, .pdf).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing picture.")] = False,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Load a model that carries code (Lambda) and run that code."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Shows the error of each layer of a file against its Keras model, on real samples.

    The file runs with every tensor kept. A row is a tensor: its signal to quantization noise
    (SQNR, 6 dB a bit), how far that falls below the tensors it is computed from, the cosine and
    the mean squared error. Layers without a tensor of their own are listed below, with the reason.
    """
    if plot is not None and steps is not None:
        raise ConfigurationError(
            "Expected --plot or --steps: the picture is of the errors, which --steps does not "
            "measure. Received: both. Call twice."
        )
    if plot is not None:
        check_picture(plot, overwrite=force, option="--force")
    from kdtflite.cli.samples import expected_by, read_samples
    from kdtflite.cli.trial import load_tried
    from kdtflite.models.model_files import open_model_file

    open_model_file(model)  # refuses what is no model before TensorFlow is imported
    file = load_tried(lite, kernels=("XNNPACK" if xnnpack else "built-in kernels",))
    x = read_samples(
        data, lambda: expected_by(file), part="test", data_path=data_path, input_range=input_range
    ).x
    import kdtflite

    keras_model = kdtflite.load_model(model, unsafe=unsafe)
    if steps is not None:
        differences = kdtflite.first_difference(
            keras_model, file, x, steps=steps, samples=samples, xnnpack=xnnpack
        )
        typer.echo(json.dumps(differences.to_dict(), indent=2) if as_json else str(differences))
        return
    errors = kdtflite.layer_errors(keras_model, file, x, samples=samples, xnnpack=xnnpack)
    if plot is not None:
        errors.plot(plot, overwrite=force)
    if as_json:
        typer.echo(json.dumps(errors.to_dict(), indent=2))
        return
    typer.echo(str(errors))
    if plot is not None:
        typer.echo(f"SQNR of the layers: {plot}")
