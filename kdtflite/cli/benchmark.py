"""`kdtflite benchmark`: the latency of a .tflite file on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from kdtflite.cli.options import AsJson, LiteFile, Xnnpack, print_result

__all__ = ["EPILOG", "NAME", "command"]

NAME = "benchmark"
EPILOG = "Example: kdtflite benchmark model.tflite --threads 1 --threads 2"


def command(
    lite: LiteFile,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Threads per invoke; repeat the option to compare.",
            show_default="1 and all cores",
        ),
    ] = None,
    invokes: Annotated[
        int, typer.Option(help="Timed invokes, at least 200: with fewer, the p99 is noise.")
    ] = 200,
    warmup: Annotated[int, typer.Option(min=0, help="Invokes before the timed ones.")] = 20,
    xnnpack: Xnnpack = True,
    as_json: AsJson = False,
) -> None:
    """Times single invokes of a file.

    Prints the p50, p90 and p99 latency, the delegate, the sizes of file and arena, and the machine.
    """
    from kdtflite.evaluation import benchmark
    from kdtflite.lite.sandbox import load_untrusted

    kernels = ("built-in kernels", "XNNPACK") if xnnpack else ("built-in kernels",)
    result = benchmark(
        load_untrusted(lite, kernels=kernels),
        threads=threads or None,
        warmup=warmup,
        invokes=invokes,
        xnnpack=xnnpack,
    )
    print_result({**result.to_dict(), "file": str(lite)}, str(result), as_json=as_json)
