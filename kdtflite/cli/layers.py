"""`kdtflite layers`: the error of each layer of a .tflite file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdtflite.cli.options import (
    AsJson,
    DataPath,
    Force,
    InputRange,
    KerasFile,
    LiteFile,
    TestData,
    Unsafe,
    Xnnpack,
    print_result,
)
from kdtflite.errors import ConfigurationError
from kdtflite.pictures import check_picture, save_picture

__all__ = ["EPILOG", "NAME", "command"]

NAME = "layers"
EPILOG = "Example: kdtflite layers student.keras student.tflite --data test.npz --plot layers.png"


def command(
    model: KerasFile,
    lite: LiteFile,
    data: TestData,
    data_path: DataPath = "auto",
    input_range: InputRange = None,
    samples: Annotated[int, typer.Option(min=1, help="The largest number of samples.")] = 128,
    xnnpack: Xnnpack = True,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Instead, compare a quantization-aware MODEL with its file code by code, and name "
            "the first tensor that differs by more than this many quantization steps.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the layers' SQNR as a picture (.png, .svg, .pdf).")
    ] = None,
    force: Force = False,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Compares each layer of FILE with MODEL, the Keras model that it was converted from.

    The table has one row per tensor: its signal-to-quantization-noise ratio (SQNR, 6 dB per bit),
    how much lower that is than the SQNR of the tensors it is computed from, the cosine similarity
    and the mean squared error. Layers without a tensor of their own are listed below the table,
    with the reason.
    """
    if plot is not None and steps is not None:
        raise ConfigurationError(
            "Expected --plot or --steps: the picture shows the errors, which --steps does not "
            "measure. Received: both. Run the command twice."
        )
    if plot is not None:
        check_picture(plot, overwrite=force, option="--force")
    from kdtflite.cli.samples import read_test_samples
    from kdtflite.lite.sandbox import load_untrusted
    from kdtflite.models.model_files import open_model_file

    # Refuses a file that is not a model before TensorFlow is imported.
    open_model_file(model, unsafe=unsafe)
    loaded = load_untrusted(lite, kernels=("XNNPACK" if xnnpack else "built-in kernels",))
    x = read_test_samples(data, loaded, data_path, input_range).x
    import kdtflite

    keras_model = kdtflite.load_model(model, unsafe=unsafe)
    if steps is not None:
        differences = kdtflite.first_difference(
            keras_model, loaded, x, steps=steps, samples=samples, xnnpack=xnnpack
        )
        print_result(differences.to_dict(), str(differences), as_json=as_json)
        return
    errors = kdtflite.layer_errors(keras_model, loaded, x, samples=samples, xnnpack=xnnpack)
    if plot is not None:
        save_picture(errors.plot(), plot, overwrite=force)
    text = str(errors) if plot is None else f"{errors}\nSQNR of the layers: {plot}"
    print_result(errors.to_dict(), text, as_json=as_json)
