"""`kdtflite inspect`: the contents of a .tflite file, and whether it is fully integer."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtflite.cli.options import AsJson, LiteFile, show

if TYPE_CHECKING:
    from kdtflite.lite.model import LiteModel

__all__ = ["EPILOG", "NAME", "command"]

NAME = "inspect"
EPILOG = "Example: kdtflite inspect model.tflite --tensors"
_LISTED = 12


def command(
    lite: LiteFile,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    account: Annotated[
        bool, typer.Option("--bytes", help="Show what the bytes are for: weights, names, ...")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Shows a file's inputs, outputs, operators, sizes and metadata; checks that it is integer.

    A file with floats is not an error here: the command lists what is not integer.
    """
    from kdtflite.lite.sandbox import load_untrusted

    loaded = load_untrusted(lite)
    proof, faults = _prove(loaded)
    if as_json:
        show(json.dumps(_describe(loaded, lite, proof, faults, tensors=tensors), indent=2))
        return
    show(f"{lite}: {loaded.summary()}")
    if loaded.metadata is not None:
        show("metadata:\n" + textwrap.indent(str(loaded.metadata), "  "))
    if tensors:
        _print_tensors(loaded)
    if account:
        show(str(loaded.size_account()))
    if proof is not None:
        show(proof.summary())
    else:
        show("Not fully integer:")
        for fault in faults[:_LISTED]:
            show(f"  {fault}")
        if len(faults) > _LISTED:
            show(f"  ... and {len(faults) - _LISTED} more (all of them with --json)")


def _prove(lite: LiteModel) -> tuple[Any, list[str]]:
    """Returns the proof and no faults, or None and a list of what is not integer."""
    from kdtflite.conversion.integer_proof import find_floats, prove_fully_integer
    from kdtflite.errors import NotFullyIntegerError

    faults = find_floats(lite)
    if faults:
        return None, faults
    try:
        return prove_fully_integer(lite), []
    except NotFullyIntegerError as error:
        # All integer, but LiteRT's default delegate still refuses it.
        return None, [str(error)]


def _describe(
    lite: LiteModel, path: Path, proof: Any, faults: list[str], *, tensors: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    from kdtflite.files import sha256

    described: dict[str, Any] = {
        "file": str(path),
        "sha256": sha256(path),
        "bytes": len(lite.content),
        "constant_bytes": sum(t.bytes for t in lite.tensors if t.is_constant),
        "size_account": lite.size_account().to_dict(),
        "inputs": [spec.to_dict() for spec in lite.inputs],
        "outputs": [spec.to_dict() for spec in lite.outputs],
        "operators": dict(Counter(operator.name for operator in lite.operators).most_common()),
        "tensor_dtypes": dict(Counter(tensor.dtype for tensor in lite.tensors).most_common()),
        "metadata": None if lite.metadata is None else lite.metadata.to_dict(),
        "metadata_problem": lite.metadata_problem,
        "fully_integer": proof is not None,
        "not_integer": faults,
        "proof": proof.to_dict() if proof is not None else None,
    }
    if tensors:
        described["tensors"] = [asdict(tensor) for tensor in lite.tensors]
    return described


def _print_tensors(lite: LiteModel) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kdtflite.text import escape_line

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("#", "dtype", "shape", "scale", "zero point", "bytes"):
        table.add_column(column, no_wrap=True)
    table.add_column("name")
    for tensor in lite.tensors:
        scales, zeros = tensor.scales, tensor.zero_points
        scale = f"{scales[0]:.6g}" if len(scales) == 1 else f"{len(scales)} channels"
        zero = str(zeros[0]) if len(set(zeros)) == 1 else "per channel"
        place = f"{tensor.subgraph}:{tensor.index}" if tensor.subgraph else str(tensor.index)
        table.add_row(
            place,
            tensor.dtype,
            "×".join(map(str, tensor.shape)) or "scalar",
            scale if scales else "",
            zero if zeros else "",
            f"{tensor.bytes:,}" if tensor.is_constant else "",
            # Cut to one line: fused operators have the names of all their parts.
            Text(escape_line(tensor.name), no_wrap=True, overflow="ellipsis"),
        )
    Console().print(table)
