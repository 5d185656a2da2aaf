"""The group of commands, which turns every error into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import signal
import traceback
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from kdtflite.errors import KdtfliteError, to_line
from kdtflite.text import escape_controls

__all__ = ["Commands", "Terminated", "end_on_signals"]

_DEBUG = "--debug"


class Terminated(KeyboardInterrupt):
    """Another process asked this one to end; raised so that children and files are cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_on_signals() -> None:
    """Makes SIGTERM and SIGHUP end the process as an interrupt does, instead of at once."""

    def end(number: int, frame: Any) -> None:
        del frame
        raise Terminated(number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        # `nohup` ignores SIGHUP, and a thread may not set handlers.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):
                signal.signal(number, end)


class Commands(TyperGroup):
    """A typer group that turns an error into one line on stderr and an exit code.

    A KdtfliteError, or a file that the system refuses, means that the input is wrong: exit code
    2. An interrupt is 130, another signal 128 and its number. Anything else is a fault of kdtflite:
    1, with a hint to `--debug`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accepts `--debug` anywhere: users add it at the end of the line."""
        end = args.index("--") if "--" in args else len(args)
        if _DEBUG in args[:end]:
            args = [_DEBUG, *(a for i, a in enumerate(args) if a != _DEBUG or i > end)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command and reports its errors."""
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except KdtfliteError as error:
            _explain(" ".join(str(error).split()), debug=debug)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            word = "Terminated" if isinstance(error, Terminated) else "Interrupted"
            _explain(f"{word}. {_describe_end(ctx.invoked_subcommand)}", debug=debug)
            number = error.number if isinstance(error, Terminated) else signal.SIGINT
            raise typer.Exit(128 + number) from error
        except OSError as error:
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            _explain(f"{error.filename}: {error.strerror}.", debug=debug)
            raise typer.Exit(2) from error
        except Exception as error:
            if _belongs_to_typer(error):
                raise
            message = f"{type(error).__name__}: {to_line(error)}".rstrip(": ")
            hint = "" if debug else " Run the same command with --debug to see where."
            _explain(f"kdtflite failed unexpectedly: {message}.{hint}", debug=debug)
            raise typer.Exit(1) from error


def _explain(message: str, *, debug: bool) -> None:
    # Imported here: rich's progress bars are not needed for --help.
    from kdtflite.progress import console

    if debug:
        trace = escape_controls(traceback.format_exc())
        console.print(trace, markup=False, highlight=False, soft_wrap=True, end="")
    shown = escape_controls(message)
    console.print(Text.assemble(("Error: ", "bold red"), shown), soft_wrap=True)


def _describe_end(command: str | None) -> str:
    if command == "run":
        return "The same command resumes after the last finished stage and epoch."
    return "Nothing was written; run the same command to start again."


def _belongs_to_typer(error: Exception) -> bool:
    # Usage errors, Exit and Abort, whose classes moved from click into typer in 2026.
    return type(error).__module__.split(".")[0] in ("click", "typer")
