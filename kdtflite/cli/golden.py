"""`kdtflite golden`: samples with a file's outputs, for another machine to repeat."""

from __future__ import annotations

from typing import Annotated

import typer

from kdtflite.cli.options import (
    AsJson,
    DataPath,
    Force,
    InputRange,
    LiteFile,
    OutputFile,
    check_output,
    print_result,
)

__all__ = ["EPILOG", "NAME", "command"]

NAME = "golden"
EPILOG = "Example: kdtflite golden student.tflite --data test.npz -n 128 -o golden.json"


def command(
    lite: LiteFile,
    output: OutputFile,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples: an .npz file, an image folder with one sub-folder per class, or a named "
            "data set, of which the test split is used. Without it, samples are random and uniform "
            "over the range of a quantized input, or over --input-range.",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", "-n", min=1, help="The number of samples, evenly spread over the data."
        ),
    ] = 128,
    data_path: DataPath = "auto",
    input_range: InputRange = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random samples.")] = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Writes a file's golden vectors: inputs and outputs, as real values and as codes.

    Another machine should repeat the outputs of LiteRT's built-in kernels bit by bit. The file also
    holds XNNPACK's outputs, and the codes of values that quantizers often get wrong: halves, NaN,
    infinities and denormals.
    """
    check_output(output, force=force)
    from kdtflite.cli.samples import read_test_samples
    from kdtflite.evaluation import golden_vectors
    from kdtflite.lite.sandbox import load_untrusted

    loaded = load_untrusted(lite, kernels=("built-in kernels", "XNNPACK"))
    x = None
    if data is not None:
        x = read_test_samples(data, loaded, data_path, input_range).x
    golden = golden_vectors(
        loaded, x, samples=samples, input_range=input_range, seed=seed, name=lite.name
    )
    golden.save(output, overwrite=force, option="--force")
    text = f"{golden.summary()}\n{output}: {output.stat().st_size:,} bytes"
    values = {"output": str(output), **golden.to_dict(), "samples": golden.samples}
    del values["quantizer"]
    print_result(values, text, as_json=as_json)
