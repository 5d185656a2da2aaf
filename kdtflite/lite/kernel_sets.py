"""Whether two files compute the same with each kernel set of LiteRT."""

from __future__ import annotations

from dataclasses import dataclass

from kdtflite.errors import ModelFileError
from kdtflite.lite.trial import try_kernel_sets
from kdtflite.progress import say

__all__ = ["KernelsCompared", "compare_outputs", "require_equal_outputs"]


@dataclass(frozen=True)
class KernelsCompared:
    """What two files compute with one kernel set.

    Attributes:
        kernels: The kernel set.
        equal: Whether all outputs are equal to the bit; None if the first file does not run.
        problem: Why one of them does not run, or "".
    """

    kernels: str
    equal: bool | None
    problem: str = ""


def compare_outputs(first: bytes, second: bytes) -> list[KernelsCompared]:
    """Runs two files with each kernel set, on zeros and on random values, and compares them.

    Both run in another process. A file that LiteRT refuses, or that ends or holds up that
    process, does not run.

    Args:
        first: A file.
        second: The file that should compute the same.
    """
    before, after = try_kernel_sets(first), try_kernel_sets(second)
    return [
        KernelsCompared(
            name,
            trial.outputs == after[name].outputs if trial.outputs else None,
            trial.refusal or after[name].refusal,
        )
        for name, trial in before.items()
    ]


def require_equal_outputs(first: bytes, second: bytes) -> None:
    """Raises unless two files compute the same with each kernel set that can run the first.

    Raises:
        ModelFileError: Names the kernel set.
    """
    for each in compare_outputs(first, second):
        if each.equal is False:
            raise ModelFileError(
                f"The packed file does not compute the same with the {each.kernels} kernels"
                + (f" ({each.problem})" if each.problem else "")
                + ". Keep the file as it is."
            )
        if each.equal is None:
            say(
                f"The packed file was not compared with the {each.kernels} kernels, which do not "
                f"run this model: {each.problem or 'no process could be started for it'}"
            )
