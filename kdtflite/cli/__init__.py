"""The command line: one file a command, and nothing heavy imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kdtflite.cli import benchmark, convert, evaluate, golden, inspect, layers, recipes, run
from kdtflite.cli.commands import Commands
from kdtflite.runtime import quiet_native_stderr

__all__ = ["app", "main"]

app = typer.Typer(
    name="kdtflite",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: kdtflite run digits",
)
for _module in (run, convert, evaluate, benchmark, inspect, layers, golden, recipes):
    app.command(_module.NAME, epilog=_module.EPILOG)(_module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from kdtflite import __version__

        typer.echo(f"kdtflite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say which one."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks, and every line of TensorFlow's.")
    ] = False,
) -> None:
    """From a big Keras teacher to a small, proven full-integer .tflite.

    Results go to stdout, progress to stderr. Exit codes: 0 done, 2 something about the input is
    wrong (one sentence says what), 130 interrupted, 1 a fault of kdtflite.
    """


def main() -> None:
    """Runs the command line; the entry point `kdtflite` and `python -m kdtflite.cli`."""
    import sys

    if "--debug" in sys.argv:
        app(prog_name="kdtflite")
    with quiet_native_stderr():
        app(prog_name="kdtflite")
