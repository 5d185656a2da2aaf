"""What a run shows, in sentences: what to ship, and whether each step was worth it.

The sentences take chance into account: a difference whose 95 % interval, of a paired bootstrap over
the test samples, includes zero is called chance, in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdtflite.reporting.formatting import (
    MISSING,
    as_number,
    compare_size,
    compare_speed,
    format_count,
    format_milliseconds,
    format_percent,
    format_points,
    format_size,
)
from kdtflite.reporting.schema import (
    ModelEntry,
    PairedComparison,
    Proof,
    Report,
    Selection,
    read_report,
)
from kdtflite.reporting.variants import PLAIN, VARIANTS, get_variant

__all__ = ["Finding", "Verdict", "find_shipped_model", "judge"]

Tone = Literal["good", "even", "bad"]

# A student that loses this much accuracy to its teacher is bad news, however small it is.
_MUCH = 0.05
# A run copies the file to ship to the top of its folder, under this name.
_AT_THE_TOP = "student.tflite"


@dataclass(frozen=True)
class Finding:
    """One or two sentences, and whether they are good news."""

    topic: str
    tone: Tone
    text: str


@dataclass(frozen=True)
class Verdict:
    """What to ship, and the findings about it.

    Args:
        file: The file to ship, or the model's label where no file name is known.
        label: The model's label.
        fully_integer: The result of the proof; None if there is none.
        recommended: Whether it is better than always answering the most frequent class.
        facts: Pairs of a name and a value, for the head of the page.
        findings: Sentences, most important first.
    """

    file: str
    label: str
    fully_integer: bool | None
    recommended: bool
    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing speaks against shipping it."""
        return self.recommended and self.fully_integer is not False


def find_shipped_model(report: Mapping[str, Any] | Report) -> ModelEntry | None:
    """Returns the model that the run chose to ship, or None if the report names none."""
    report = read_report(report)
    if report.selection is None:
        return None
    models = {model.key: model for model in report.models or ()}
    return models.get(report.selection.chosen)


def judge(report: Mapping[str, Any] | Report) -> Verdict | None:
    """Returns what to ship and why, or None if the report names no file to ship."""
    report = read_report(report)
    shipped = find_shipped_model(report)
    if shipped is None or report.selection is None:
        return None
    models = {model.key: model for model in report.models or ()}
    findings = (
        _judge_gain(shipped, models, report),
        _judge_selection(report.selection),
        _compare_with_teacher(shipped, models.get("teacher"), report),
        _judge_distillation(models, report),
        _judge_quantization(shipped, models, report),
        _judge_integer(report.proof),
        _judge_ties(shipped, report.test_samples),
    )
    file = shipped.file or shipped.label
    facts = (
        ("Test accuracy", format_percent(shipped.accuracy)),
        ("File size", format_size(shipped.bytes)),
        ("Latency (p50)", format_milliseconds(shipped.p50)),
    )
    return Verdict(
        file=_AT_THE_TOP if file == f"files/{shipped.key}.tflite" else file,
        label=shipped.label,
        fully_integer=None if report.proof is None else report.proof.fully_integer,
        recommended=report.selection.recommended,
        facts=tuple((name, value) for name, value in facts if value != MISSING),
        findings=tuple(finding for finding in findings if finding is not None),
    )


def _judge_gain(
    shipped: ModelEntry, models: Mapping[str, ModelEntry], report: Report
) -> Finding | None:
    """Compares the file to ship with what there is without all of this."""
    plain = "post-training quantization (PTQ) of the student trained on hard labels alone"
    if shipped.key == PLAIN:
        if report.selection is None or len(report.selection.files) < 2:
            return None
        text = f"Nothing was gained here: the file to ship is {plain}, the simplest of all."
        return Finding("Gain", "even", text)
    pair = _read_accuracies(shipped, models.get(PLAIN))
    if pair is None:
        return None
    rates = f"{format_percent(pair[0])} against {format_percent(pair[1])}"
    if _is_negligible(pair[0] - pair[1]):
        text = f"The file to ship is as accurate as {plain} ({format_percent(pair[0])})."
        return Finding("Gain", "even", text)
    side = "more" if pair[0] > pair[1] else "less"
    tone, chance = _weigh(*pair, _find_comparison(report, shipped.key, PLAIN))
    text = f"The file to ship is {_format_gap(pair[0] - pair[1])} {side} accurate than {plain} "
    return Finding("Gain", tone, f"{text}({rates}). {chance}".strip())


def _judge_selection(selection: Selection) -> Finding | None:
    if not selection.why:
        return None
    return Finding("Choice", "good" if selection.recommended else "bad", selection.why)


def _compare_with_teacher(
    shipped: ModelEntry, teacher: ModelEntry | None, report: Report
) -> Finding | None:
    if teacher is None:
        return None
    sizes = compare_size(shipped.bytes, teacher.bytes)
    speeds = compare_speed(shipped.p50, teacher.p50)
    parts = [
        {"same size": "as large", "same speed": "as fast"}.get(part, part)
        for part in (sizes, speeds)
        if part
    ]
    tone: Tone = "bad" if sizes.endswith("larger") or speeds.endswith("slower") else "good"
    pair = _read_accuracies(shipped, teacher)
    if pair is not None:
        gap = pair[0] - pair[1]
        rates = f"{format_percent(pair[0])} against {format_percent(pair[1])}"
        if _is_negligible(gap):
            parts.append(f"as accurate ({format_percent(pair[0])})")
        else:
            parts.append(f"{_format_gap(gap)} {'more' if gap > 0 else 'less'} accurate ({rates})")
        if gap < -_MUCH and not _is_chance(_find_comparison(report, shipped.key, "teacher")):
            tone = "bad"
    if not parts:
        return None
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return Finding("Against the teacher", tone, f"Compared with the teacher it is {listed}.")


def _judge_distillation(models: Mapping[str, ModelEntry], report: Report) -> Finding | None:
    pair = _read_accuracies(models.get("distilled"), models.get("hard_labels"))
    if pair is None:
        return None
    with_teacher, without = pair
    gap = with_teacher - without
    rates = f"{format_percent(with_teacher)} against {format_percent(without)}"
    choice = report.choice
    if choice is not None and choice.chosen == choice.baseline:
        why = (
            "In the trials no loss with the teacher was better than hard labels alone"
            if choice.trials
            else "No loss with the teacher was tried"
        )
        text = f"{why}, so the student learned from hard labels alone. It scores {rates} of the "
        text += "baseline" + (
            "."  # its recipe sets how long it is trained
            if (report.recipe or {}).get("hard_labels")
            else ", which was trained for as long."
        )
        return Finding("Distillation", "even", text)
    if _is_negligible(gap):
        text = (
            f"Distillation made no difference here: with and without it the float student "
            f"scores {format_percent(with_teacher)}."
        )
        return Finding("Distillation", "even", text)
    if gap > 0:
        text = (
            f"The distilled float student is {_format_gap(gap)} more accurate than the same "
            f"student trained on hard labels alone ({rates})."
        )
    else:
        text = (
            f"Distillation did not help here: the distilled float student is {_format_gap(gap)} "
            f"less accurate than the same student trained on hard labels alone ({rates})."
        )
    comparison = _find_comparison(report, "distilled", "hard_labels")
    tone, caution = _weigh(with_teacher, without, comparison)
    return Finding("Distillation", tone, f"{text} {caution}".strip())


def _judge_quantization(
    shipped: ModelEntry, models: Mapping[str, ModelEntry], report: Report
) -> Finding | None:
    """Compares the two ways to quantize the float student that the file to ship comes from."""
    variant = get_variant(shipped.key)
    start = None if variant is None else variant.float_key
    ways = [one for one in VARIANTS if one.float_key == start and one.key in models]
    trained = next((one for one in ways if one.stage != start), None)
    converted = next((one for one in ways if one.stage == start), None)
    if start is None or trained is None or converted is None:
        return None
    aware, post, origin = models[trained.key], models[converted.key], models.get(start)
    pair = _read_accuracies(aware, post)
    if pair is None:
        return None
    gap = pair[0] - pair[1]
    student = "distilled student" if start == "distilled" else "student trained on hard labels"
    tone: Tone = "even"
    if _is_negligible(gap):
        parts = [
            f"Quantization-aware training (QAT) of the {student} is as accurate as its "
            f"post-training quantization (PTQ): {format_percent(pair[0])}."
        ]
    else:
        side = "ahead of" if gap > 0 else "behind"
        tone, caution = _weigh(*pair, _find_comparison(report, trained.key, converted.key))
        parts = [
            f"Quantization-aware training (QAT) of the {student} is {_format_gap(gap)} {side} its "
            f"post-training quantization (PTQ): {format_percent(pair[0])} against "
            f"{format_percent(pair[1])}.",
            caution,
        ]
    costs = (
        ("with QAT", _read_accuracies(aware, origin)),
        ("with PTQ", _read_accuracies(post, origin)),
    )
    changes = [f"{format_points(own[0] - own[1])} {how}" for how, own in costs if own is not None]
    if changes:
        parts.append(
            f"Going from float to integers changed the accuracy by {' and by '.join(changes)}."
        )
    return Finding("Quantization", tone, " ".join(part for part in parts if part))


def _judge_integer(proof: Proof | None) -> Finding | None:
    if proof is None:
        return None
    operators = proof.operators
    counted = "Every operator" if operators is None else _format_amount(len(operators), "operator")
    if not proof.fully_integer:
        floats = as_number(proof.float_tensors)
        found = f": {_format_amount(floats, 'float tensor')} found" if floats else ""
        text = f"The file is not fully integer{found}. The table below names the operators."
        return Finding("Integer proof", "bad", text)
    ends = [
        f"{end.dtype} {name}"
        for end, name in ((proof.input, "in"), (proof.output, "out"))
        if end is not None and end.dtype
    ]
    text = f"{counted} checked: no float tensor anywhere"
    text += f", {' and '.join(ends)}" if ends else ""
    if proof.invoked_with:
        text += f". The file was also run, with {proof.invoked_with}"
    return Finding("Integer proof", "good", f"{text}.")


def _judge_ties(shipped: ModelEntry, samples: int) -> Finding | None:
    ties = as_number(shipped.ties)
    if not ties:
        return None
    of = f" of {format_count(samples)}" if samples else ""
    text = f"Several classes share the highest output on {format_count(ties)}{of} test samples."
    lost, won = as_number(shipped.accuracy_if_ties_lost), as_number(shipped.accuracy_if_ties_won)
    if lost is not None and won is not None:
        text += (
            f" Depending on how such ties are broken, the accuracy is between "
            f"{format_percent(lost)} and {format_percent(won)}."
        )
    return Finding("Ties", "even", text)


def _read_accuracies(
    first: ModelEntry | None, second: ModelEntry | None
) -> tuple[float, float] | None:
    one = None if first is None else as_number(first.accuracy)
    two = None if second is None else as_number(second.accuracy)
    return None if one is None or two is None else (one, two)


def _find_comparison(report: Report, first: str, second: str) -> PairedComparison | None:
    for comparison in report.comparisons or ():
        if (comparison.first, comparison.second) == (first, second):
            return comparison
    return None


def _weigh(first: float, second: float, comparison: PairedComparison | None) -> tuple[Tone, str]:
    """Returns the tone of a difference, and whether chance explains it."""
    tone: Tone = "good" if first > second else "bad"
    if comparison is None:
        return tone, ""
    off = _format_amount(abs(first - second) * comparison.samples, "test sample")
    interval = (
        f"95 % interval {format_points(comparison.low)} to {format_points(comparison.high)}, "
        f"paired bootstrap of {format_count(comparison.samples)}"
    )
    if not _is_chance(comparison):
        return tone, f"That is {off}, more than chance explains ({interval})."
    return "even", (
        f"That is {off}, within what chance explains ({interval}): "
        "repeat the run with other seeds before relying on it."
    )


def _is_chance(comparison: PairedComparison | None) -> bool:
    return comparison is not None and comparison.low <= 0 <= comparison.high


def _is_negligible(gap: float) -> bool:
    return abs(gap) < 0.5e-4


def _format_gap(gap: float) -> str:
    return format_points(abs(gap)).lstrip("+")


def _format_amount(amount: float, noun: str) -> str:
    return f"{format_count(amount)} {noun}{'' if round(amount) == 1 else 's'}"
