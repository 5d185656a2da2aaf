"""The choice of the file to ship, by measurement on the validation samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.evaluation.paired import PairedDifference, compare_paired
from kdtflite.reporting.formatting import format_count, format_percent, format_points, format_size

__all__ = ["MeasuredFile", "Selection", "select_file"]

# Names and tables in a file differ by some bytes that nobody would give accuracy for.
_SAME_SIZE = 1.01


@dataclass(frozen=True, eq=False)
class MeasuredFile:
    """A file to choose from.

    Attributes:
        key: Its key in the run.
        label: Its name for people.
        right: Whether it classifies each validation sample correctly, shape (samples,), bool.
        bytes: Its size.
        macs: Multiply-accumulate operations of an inference.
    """

    key: str
    label: str
    right: np.ndarray
    bytes: int
    macs: int

    @property
    def accuracy(self) -> float:
        """Share of the validation samples that it classifies correctly."""
        return float(self.right.mean())


@dataclass(frozen=True)
class Selection:
    """The file that was chosen, and why.

    Attributes:
        chosen: Its key.
        recommended: Whether it is better than always answering the most frequent class.
        why: The reason, in one or two sentences.
        majority: Accuracy of always answering the most frequent class.
        samples: Number of validation samples.
        files: Every file, and its difference from the most accurate one.
    """

    chosen: str
    recommended: bool
    why: str
    majority: float
    samples: int
    files: tuple[tuple[MeasuredFile, PairedDifference], ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report's section "selection"."""
        return {
            "chosen": self.chosen,
            "recommended": self.recommended,
            "why": self.why,
            "majority": self.majority,
            "samples": self.samples,
            "files": [
                {
                    "key": file.key,
                    "label": file.label,
                    "accuracy": file.accuracy,
                    "bytes": file.bytes,
                    "behind": behind.to_dict(),
                }
                for file, behind in self.files
            ],
        }


def select_file(files: Sequence[MeasuredFile], labels: np.ndarray) -> Selection:
    """Chooses the file to ship.

    The most accurate file is the measure. Every file that is behind it by no more than one
    standard error of their paired difference counts as equally accurate, and of these the smallest
    is chosen; sizes within one percent count as equal. Among those, the one with the fewest
    multiply-accumulate operations is chosen, then the more accurate one.

    Operations stand for speed: stopwatches differ from one run to the next, and two runs of one
    recipe would ship different files.

    The chosen file is recommended if it is more accurate than always answering the most frequent
    class, by more than the standard error of that difference.

    Args:
        files: The files, at least one.
        labels: The class of every validation sample, shape (samples,).

    Returns:
        The choice with its reason.
    """
    best = min(files, key=lambda file: (-file.accuracy, file.bytes, file.macs))
    behind = [(file, compare_paired(file.right, best.right)) for file in files]
    equal = [file for file, difference in behind if difference.is_noise]
    smallest = min(file.bytes for file in equal)
    small = [file for file in equal if file.bytes <= smallest * _SAME_SIZE]
    chosen = min(small, key=lambda file: (file.macs, -file.accuracy, file.bytes))
    constant = labels == np.bincount(labels).argmax()
    above = compare_paired(chosen.right, constant)
    recommended = above.difference > 0 and not above.is_noise
    why = _explain(chosen, best, dict(behind)[chosen], smaller=best not in small, equal=len(equal))
    if not recommended:
        why += (
            f" But it is no better than always answering the most frequent class: "
            f"{format_percent(chosen.accuracy)} against {format_percent(constant.mean())}, "
            f"{_format_error(above)}."
        )
    return Selection(
        chosen.key, recommended, why, float(constant.mean()), len(labels), tuple(behind)
    )


def _explain(
    chosen: MeasuredFile, best: MeasuredFile, gap: PairedDifference, *, smaller: bool, equal: int
) -> str:
    name = chosen.label
    on = f"on {format_count(len(chosen.right))} validation samples"
    accuracy = format_percent(chosen.accuracy)
    if chosen is not best:
        rates = f"{accuracy} against {format_percent(best.accuracy)} {on}"
        reason = (
            f"the smaller file ({format_size(chosen.bytes)} against {format_size(best.bytes)})"
            if smaller
            else "the file with fewer operations, at the same size"
        )
        if not gap.difference:
            return f"{name} is as accurate as {best.label} ({accuracy} {on}). It is {reason}."
        return (
            f"{name} is as accurate as {best.label}, within the standard error of their difference "
            f"({rates}, {_format_error(gap)}). It is {reason}."
        )
    others = equal - 1
    if not others:
        return f"{name} is the most accurate file {on} ({accuracy}), beyond the standard error."
    count = "Another file is" if others == 1 else f"{format_count(others)} other files are"
    return (
        f"{name} is the most accurate file {on} ({accuracy}). {count} within the standard error of "
        "the difference, but not smaller."
    )


def _format_error(difference: PairedDifference) -> str:
    error = difference.to_dict()["standard_error"]
    if error is None:
        return "and one sample tells nothing"
    return f"with a standard error of {format_points(error).lstrip('+±')}"
