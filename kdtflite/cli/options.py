"""Arguments and options that several commands have, and what they check first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kdtflite.errors import ConfigurationError
from kdtflite.text import escape_controls

__all__ = [
    "AsJson",
    "CalibrationData",
    "DataPath",
    "Force",
    "InputRange",
    "KerasFile",
    "LiteFile",
    "Names",
    "OutputFile",
    "TestData",
    "Unsafe",
    "Xnnpack",
    "check_output",
    "print_result",
    "read_labels",
    "show",
]

LiteFile = Annotated[Path, typer.Argument(help="A .tflite file.", metavar="FILE")]
KerasFile = Annotated[
    Path, typer.Argument(help="A .keras or .h5 file, or a SavedModel folder.", metavar="MODEL")
]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
Names = Annotated[
    str,
    typer.Option(
        metavar="all|layers|none",
        help="What the file keeps of the names of inner tensors: all, those of their layers, or "
        "none. No kernel reads them.",
    ),
]
_SOURCES = "an .npz file, an image folder with one sub-folder per class, or a named data set"
TestData = Annotated[
    str,
    typer.Option(metavar="DATA", help=f"Samples: {_SOURCES} (its test split)."),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help=f"Samples that calibrate the activations: {_SOURCES}. int8, int8x4 and int16x8 need "
        "them.",
    ),
]
DataPath = Annotated[
    str, typer.Option(metavar="PATH|auto", help="Where a named data set is; auto downloads it.")
]
InputRange = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="The range of the inputs that the model was trained on; images and bytes are scaled "
        "to it.",
        show_default="0 1",
    ),
]
Xnnpack = Annotated[
    bool, typer.Option("--xnnpack/--no-xnnpack", help="Use LiteRT's default delegate.")
]
Unsafe = Annotated[
    bool,
    typer.Option(
        "--unsafe",
        help="Load a model that carries code (Lambda), reaches other files, or declares far more "
        "than it holds. The code runs with your rights.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def check_output(path: Path, *, force: bool) -> None:
    """Raises before any work if the output file cannot be written.

    Raises:
        OutputExistsError: It exists and `force` is False.
        ConfigurationError: It is a folder.
    """
    from kdtflite.files import refuse_existing

    refuse_existing(path, overwrite=force, option="--force")
    if path.is_dir():
        raise ConfigurationError(f"Expected --output to name a file. Received: the folder {path}.")


def read_labels(path: Path) -> list[str]:
    """Reads a text file with one class name per line.

    Raises:
        ConfigurationError: It is not such a file.
    """
    from kdtflite.lite.metadata_writing import check_metadata

    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            "Expected --labels to name a text file in UTF-8 with one class per line. Received: "
            f"{path}, which has another encoding."
        ) from error
    labels = [line.strip() for line in lines]
    try:
        check_metadata(labels=labels)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return labels


def print_result(values: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Prints the result of a command, as JSON or for people."""
    show(json.dumps(values, indent=2) if as_json else text)


def show(text: str) -> None:
    """Prints a result; whatever a file's names and labels hold is shown and not obeyed."""
    typer.echo(escape_controls(text))
