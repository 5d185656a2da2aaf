"""`kdtflite golden`: samples and a file's answers to them, for a phone to repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdtflite.errors import ConfigurationError

__all__ = ["EPILOG", "NAME", "command"]

NAME = "golden"
EPILOG = "Example: kdtflite golden student.tflite --data test.npz -n 128 -o golden.json"


def command(
    model: Annotated[Path, typer.Argument(help="A .tflite file.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .json file to write.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Samples: an .npz file, an image folder of class sub-folders, or a named data "
            "set, of which the test split is taken. [random, evenly within each input's range]"
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option("--samples", "-n", min=1, help="How many, evenly spread over the data."),
    ] = 128,
    data_path: Annotated[
        str, typer.Option(metavar="PATH|auto", help="Where a named data set lies.")
    ] = "auto",
    input_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="What the model was trained on; images and bytes are scaled to it, and random "
            "samples of an input that is not quantized are drawn from it. [0 1]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is random.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was written, without the samples, as JSON.")
    ] = False,
) -> None:
    """Writes a file's golden vectors: inputs and outputs, as real values and as codes.

    The outputs are those of LiteRT's built-in kernels, which another machine should give bit by
    bit; XNNPACK's stand beside them. Values that a quantizer gets wrong first (halves, NaN,
    infinities, denormals) are given with their codes.
    """
    from kdtflite.files import refuse_existing

    refuse_existing(output, overwrite=force, option="--force")
    if output.is_dir():
        raise ConfigurationError(
            f"Expected --output to name a file. Received: the folder {output}."
        )
    from kdtflite.cli.samples import expected_by, read_samples
    from kdtflite.cli.trial import load_tried
    from kdtflite.evaluation import golden_vectors

    lite = load_tried(model, kernels=("built-in kernels", "XNNPACK"))
    x = None
    if data is not None:
        x = read_samples(
            data,
            lambda: expected_by(lite),
            part="test",
            data_path=data_path,
            input_range=input_range,
        ).x
    golden = golden_vectors(
        lite, x, samples=samples, input_range=input_range, seed=seed, name=model.name
    )
    golden.save(output, overwrite=force, option="--force")
    if as_json:
        said = {key: value for key, value in golden.to_dict().items() if key != "quantizer"}
        said["samples"] = golden.samples
        typer.echo(json.dumps({"output": str(output), **said}, indent=2))
        return
    typer.echo(str(golden))
    typer.echo(f"{output}: {output.stat().st_size:,} bytes")
