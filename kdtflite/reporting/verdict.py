"""What a run means, in sentences: what to ship, and whether each step was worth it.

The sentences stay honest about chance: a difference that the size of the test split cannot
resolve is called so, in either direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdtflite.reporting.formatting import (
    MISSING,
    compare_size,
    compare_speed,
    count,
    milliseconds,
    number,
    percent,
    points,
    size,
)
from kdtflite.reporting.schema import SHIPPED_KEYS

__all__ = ["Finding", "Verdict", "chance_margin", "judge", "shipped_model"]

Tone = Literal["good", "even", "bad"]

# A student this much less accurate than its teacher is no good news, however small.
_MUCH = 0.05
# A run puts the file to ship at the top of its folder, byte for byte, and calls it this.
_AT_THE_TOP = {"files/distilled_int8.tflite": "student.tflite"}


@dataclass(frozen=True)
class Finding:
    """One sentence or two, and whether it is good news."""

    topic: str
    tone: Tone
    text: str


@dataclass(frozen=True)
class Verdict:
    """What to ship and what was found.

    Args:
        file: The file to ship, or the model's label where no file name is known.
        label: The model's label.
        fully_integer: What the proof said; None where there is no proof.
        facts: Pairs of a name and a value, for the head of the page.
        findings: Sentences, most important first.
    """

    file: str
    label: str
    fully_integer: bool | None
    facts: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]


def shipped_model(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the model that the report recommends, or None if it holds no student."""
    models = {model.get("key"): model for model in report.get("models") or ()}
    return next((models[key] for key in SHIPPED_KEYS if key in models), None)


def chance_margin(first: float, second: float, samples: int) -> float:
    """Returns half the 95 % interval of a difference between two accuracies.

        1.96 · sqrt((p₁(1 - p₁) + p₂(1 - p₂)) / n)

    It takes the two for independent. Both were measured on the same samples, which narrows
    the true interval: the margin errs towards caution.
    """
    return 1.96 * math.sqrt((first * (1 - first) + second * (1 - second)) / samples)


def judge(report: Mapping[str, Any]) -> Verdict | None:
    """Returns what to ship and why, or None if the report holds no student."""
    shipped = shipped_model(report)
    if shipped is None:
        return None
    models = {model.get("key"): model for model in report["models"]}
    samples = int(number(((report.get("dataset") or {}).get("samples") or {}).get("test")) or 0)
    proof = report.get("proof") or {}
    findings = (
        _against_teacher(shipped, models.get("teacher")),
        _distillation(models.get("distilled"), models.get("hard_labels"), samples, report),
        _quantization_aware(models, samples),
        _integer(proof),
        _ties(shipped, samples),
    )
    latency = shipped.get("latency_ms") or {}
    file = shipped.get("file") or shipped.get("label", "")
    facts = (
        ("Test accuracy", percent(shipped.get("accuracy"))),
        ("File size", size(shipped.get("bytes"))),
        ("Latency (p50)", milliseconds(latency.get("p50"))),
    )
    return Verdict(
        file=_AT_THE_TOP.get(file, file),
        label=shipped.get("label", ""),
        fully_integer=bool(proof["fully_integer"]) if "fully_integer" in proof else None,
        facts=tuple((name, value) for name, value in facts if value != MISSING),
        findings=tuple(finding for finding in findings if finding is not None),
    )


def _against_teacher(
    shipped: Mapping[str, Any], teacher: Mapping[str, Any] | None
) -> Finding | None:
    if teacher is None:
        return None
    own, theirs = shipped.get("latency_ms") or {}, teacher.get("latency_ms") or {}
    sizes = compare_size(shipped.get("bytes"), teacher.get("bytes"))
    speeds = compare_speed(own.get("p50"), theirs.get("p50"))
    parts = [
        {"same size": "as large", "same speed": "as fast"}.get(part, part)
        for part in (sizes, speeds)
        if part
    ]
    tone: Tone = "bad" if sizes.endswith("larger") or speeds.endswith("slower") else "good"
    pair = _accuracies(shipped, teacher)
    if pair is not None:
        gap = pair[0] - pair[1]
        rates = f"{percent(pair[0])} against {percent(pair[1])}"
        if _nothing(gap):
            parts.append(f"as accurate ({percent(pair[0])})")
        else:
            parts.append(f"{_plain(gap)} {'more' if gap > 0 else 'less'} accurate ({rates})")
        if gap < -_MUCH:
            tone = "bad"
    if not parts:
        return None
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return Finding("Against the teacher", tone, f"Compared with the teacher it is {listed}.")


def _distillation(
    distilled: Mapping[str, Any] | None,
    hard: Mapping[str, Any] | None,
    samples: int,
    report: Mapping[str, Any],
) -> Finding | None:
    pair = _accuracies(distilled, hard)
    if pair is None:
        return None
    with_teacher, without = pair
    gap = with_teacher - without
    rates = f"{percent(with_teacher)} against {percent(without)}"
    choice = report.get("choice") or {}
    if choice and choice["chosen"] == choice.get("baseline"):
        why = (
            "In the trials no loss with the teacher was better than hard labels alone"
            if choice.get("trials")
            else "No loss with the teacher was tried"
        )
        text = f"{why}, so the student learnt from hard labels alone. It scores {rates} of the "
        text += "baseline" + (
            "."  # of which the recipe says for how long it is trained
            if (report.get("recipe") or {}).get("hard_labels")
            else ", which was trained for as long as the student and its quantization together."
        )
        return Finding("Distillation", "even", text)
    if _nothing(gap):
        text = (
            f"Distillation made no difference here: with and without it the float student "
            f"scores {percent(with_teacher)}."
        )
        return Finding("Distillation", "even", text)
    if gap > 0:
        text = (
            f"The distilled float student is {_plain(gap)} more accurate than the same student "
            f"trained on hard labels alone ({rates})."
        )
    else:
        text = (
            f"Distillation did not help here: the distilled float student is {_plain(gap)} less "
            f"accurate than the same student trained on hard labels alone ({rates})."
        )
    tone, caution = _weigh(with_teacher, without, samples)
    return Finding("Distillation", tone, f"{text} {caution}".strip())


def _quantization_aware(models: Mapping[str, Mapping[str, Any]], samples: int) -> Finding | None:
    aware, post = models.get("distilled_int8"), models.get("ptq_int8")
    pair = _accuracies(aware, post)
    if pair is None:
        return None
    gap = pair[0] - pair[1]
    rates = f"{percent(pair[0])} against {percent(pair[1])}"
    tone: Tone = "even"
    if _nothing(gap):
        parts = [
            f"Both int8 files score {percent(pair[0])}: quantization-aware training (QAT) after "
            "distillation gained nothing over post-training quantization (PTQ) of the "
            "hard-label student."
        ]
    else:
        side = "ahead of" if gap > 0 else "behind"
        tone, caution = _weigh(*pair, samples)
        parts = [
            f"The distilled file with quantization-aware training (QAT) is {_plain(gap)} {side} "
            f"post-training quantization (PTQ) of the hard-label student ({rates}).",
            caution,
        ]
    # The two files differ in training as well, so what int8 itself cost is told apart.
    costs = (
        ("with QAT", _accuracies(aware, models.get("distilled"))),
        ("with PTQ", _accuracies(post, models.get("hard_labels"))),
    )
    told = [f"{points(own[0] - own[1])} {how}" for how, own in costs if own is not None]
    if told:
        parts.append(
            f"Going from float to int8 changed the accuracy by {' and by '.join(told)}, "
            "each measured from its own float student."
        )
    return Finding("Quantization", tone, " ".join(part for part in parts if part))


def _integer(proof: Mapping[str, Any]) -> Finding | None:
    if "fully_integer" not in proof:
        return None
    operators = proof.get("operators")
    counted = "Every operator" if operators is None else _of(len(operators), "operator")
    if not proof["fully_integer"]:
        floats = number(proof.get("float_tensors"))
        found = f": {_of(floats, 'float tensor')} found" if floats else ""
        text = f"The file is not fully integer{found}. The table below names the operators."
        return Finding("Integer proof", "bad", text)
    ends = [
        f"{(proof.get(end) or {})['dtype']} {name}"
        for end, name in (("input", "in"), ("output", "out"))
        if (proof.get(end) or {}).get("dtype")
    ]
    text = f"{counted} checked: no float tensor anywhere"
    text += f", {' and '.join(ends)}" if ends else ""
    if proof.get("invoked_with"):
        text += f". The file was also run, with {proof['invoked_with']}"
    return Finding("Integer proof", "good", f"{text}.")


def _ties(shipped: Mapping[str, Any], samples: int) -> Finding | None:
    ties = number(shipped.get("ties"))
    if not ties:
        return None
    of = f" of {count(samples)}" if samples else ""
    text = f"On {count(ties)}{of} test samples several classes share the file's highest output."
    lost = number(shipped.get("accuracy_if_ties_lost"))
    won = number(shipped.get("accuracy_if_ties_won"))
    if lost is not None and won is not None:
        text += (
            f" Depending on who breaks such ties, the accuracy lies between {percent(lost)} "
            f"and {percent(won)}."
        )
    return Finding("Ties", "even", text)


def _accuracies(
    first: Mapping[str, Any] | None, second: Mapping[str, Any] | None
) -> tuple[float, float] | None:
    one = number((first or {}).get("accuracy"))
    two = number((second or {}).get("accuracy"))
    return None if one is None or two is None else (one, two)


def _weigh(first: float, second: float, samples: int) -> tuple[Tone, str]:
    """Returns the tone of a difference, and what chance has to say about it."""
    tone: Tone = "good" if first > second else "bad"
    if not samples:
        return tone, ""
    margin = chance_margin(first, second, samples)
    off = _of(abs(first - second) * samples, "sample")
    span = f"{count(samples)} test samples alone can move the difference by ±{_plain(margin)}"
    if abs(first - second) > margin:
        return tone, f"That is {off}, more than chance explains ({span})."
    return "even", (
        f"That is {off}, within what chance explains ({span}): "
        "repeat with other seeds before relying on it."
    )


def _nothing(gap: float) -> bool:
    return abs(gap) < 0.5e-4


def _plain(gap: float) -> str:
    return points(abs(gap)).lstrip("+")


def _of(amount: float, noun: str) -> str:
    return f"{count(amount)} {noun}{'' if round(amount) == 1 else 's'}"
