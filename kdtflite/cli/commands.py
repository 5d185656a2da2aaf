"""The group of commands: what becomes of an error, wherever it comes from."""

from __future__ import annotations

import errno
import traceback
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from kdtflite.errors import KdtfliteError

__all__ = ["Commands"]

_DEBUG = "--debug"


class Commands(TyperGroup):
    """A typer group that turns an error into one line on stderr and an exit code.

    A KdtfliteError, or a file that the system refuses, is the input's fault: exit code 2. An
    interrupt is 130. Anything else is kdtflite's own: 1, with a hint to `--debug`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes `--debug` anywhere: who is told to add it adds it at the end of the line."""
        end = args.index("--") if "--" in args else len(args)
        if _DEBUG in args[:end]:
            args = [_DEBUG, *(a for i, a in enumerate(args) if a != _DEBUG or i > end)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; errors end here."""
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except KdtfliteError as error:
            _explain(_one_line(error), debug=debug)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _explain(_interrupted(ctx.invoked_subcommand), debug=debug)
            raise typer.Exit(130) from error
        except OSError as error:
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            _explain(f"{error.filename}: {error.strerror}.", debug=debug)
            raise typer.Exit(2) from error
        except Exception as error:
            if _is_typers(error):
                raise
            message = f"{type(error).__name__}: {_one_line(error)}"
            hint = "" if debug else " Run the same command with --debug to see where."
            _explain(f"kdtflite failed unexpectedly: {message.rstrip('. ')}.{hint}", debug=debug)
            raise typer.Exit(1) from error


def _explain(message: str, *, debug: bool) -> None:
    # Imported here: rich's progress bars are not needed for --help.
    from kdtflite.progress import console

    if debug:
        console.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True, end="")
    console.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _interrupted(command: str | None) -> str:
    if command == "run":
        return "Interrupted. The same command goes on from the last finished stage and epoch."
    return "Interrupted. Nothing was written; run the same command to start again."


def _is_typers(error: Exception) -> bool:
    # Usage errors, Exit and Abort, whose classes moved from click into typer in 2026.
    return type(error).__module__.split(".")[0] in ("click", "typer")
