"""The command line: one file per command; nothing heavy is imported before a command runs."""

from __future__ import annotations

from inspect import cleandoc
from typing import Annotated

import typer

from kdtflite.cli import benchmark, convert, evaluate, golden, inspect, layers, pack, recipes, run
from kdtflite.cli.commands import Commands, end_on_signals
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
for _module in (run, convert, pack, evaluate, benchmark, inspect, layers, golden, recipes):
    # A paragraph is one line: the help breaks it where the terminal ends.
    _paragraphs = cleandoc(_module.command.__doc__ or "").split("\n\n")
    _help = "\n\n".join(" ".join(each.split()) for each in _paragraphs)
    app.command(_module.NAME, help=_help, epilog=_module.EPILOG)(_module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from kdtflite import __version__

        typer.echo(f"kdtflite {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks, and all output of TensorFlow.")
    ] = False,
) -> None:
    """From a large Keras teacher to a small, proven full-integer .tflite.

    Results go to stdout, progress to stderr. Exit codes: 0 success; 1 a fault of kdtflite; 2 wrong
    input, which one sentence explains; 130 interrupted, 143 terminated.
    """


def main() -> None:
    """Runs the command line; the entry point `kdtflite` and `python -m kdtflite`."""
    import sys

    end_on_signals()
    if "--debug" in sys.argv:
        app(prog_name="kdtflite")
    with quiet_native_stderr():
        app(prog_name="kdtflite")
