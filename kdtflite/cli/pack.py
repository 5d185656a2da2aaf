"""`kdtflite pack`: the same model in fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdtflite.cli.options import AsJson, Force, LiteFile, Names, check_output, print_result

__all__ = ["EPILOG", "NAME", "command"]

NAME = "pack"
EPILOG = "Example: kdtflite pack model.tflite -o packed.tflite --names none"


def command(
    lite: LiteFile,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write.", show_default="FILE with .packed.tflite"
        ),
    ] = None,
    names: Names = "layers",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Writes a file anew, without the bytes that no kernel reads.

    Equal parts are written once, and the names of inner tensors are cut. Inputs, outputs,
    signatures, labels and metadata stay. Nothing is written unless XNNPACK, the built-in and the
    reference kernels all give the same outputs, bit by bit, as before.
    """
    from kdtflite.lite.packing import check_names

    output = lite.with_suffix(".packed.tflite") if output is None else output
    check_output(output, force=force)
    check_names(names)
    import kdtflite
    from kdtflite.files import sha256
    from kdtflite.lite.kernel_sets import compare_outputs
    from kdtflite.lite.sandbox import load_untrusted

    loaded = load_untrusted(lite)
    packed = kdtflite.pack(loaded, names)
    packed.save(output, overwrite=force, option="--force")
    before, after = len(loaded.content), len(packed.content)
    # Both have just run: this looks their outputs up.
    compared = compare_outputs(loaded.content, packed.content)
    kernels = [each.kernels for each in compared if each.equal]
    values = {
        "output": str(output),
        "sha256": sha256(output),
        "bytes_before": before,
        "bytes": after,
        "names": names,
        "equal_outputs": {each.kernels: each.equal for each in compared},
    }
    text = (
        f"{output}: {after:,} bytes instead of {before:,} ({after / before - 1:+.1%}); "
        + (f"the same outputs, bit by bit, with {', '.join(kernels)} kernels" if kernels else "")
    ).rstrip("; ")
    print_result(values, text, as_json=as_json)
