"""What each section of the page shows, worked out of the report; None leaves a section out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from kdtflite.reporting.formatting import count, milliseconds, number, percent, size
from kdtflite.reporting.pictures import picture
from kdtflite.reporting.plots import (
    accuracy_versus_latency,
    accuracy_versus_size,
    confusion_matrix,
    training_curves,
)
from kdtflite.reporting.svg import inline_svg
from kdtflite.reporting.trial_plot import trial_curves
from kdtflite.reporting.verdict import shipped_model

__all__ = ["sections"]

Section = dict[str, Any]

_SHORT_LABELS = {
    "teacher": "Teacher",
    "hard_labels": "Hard labels",
    "distilled": "Distilled",
    "ptq_int8": "PTQ int8",
    "distilled_int8": "QAT int8",
}
_MOST_SAMPLES = 60
_MOST_CONFUSIONS = 5


def sections(report: Mapping[str, Any]) -> dict[str, Section]:
    """Returns the sections that the report has data for, in the page's order."""
    makers: dict[str, Callable[[Mapping[str, Any]], Section | None]] = {
        "models": _models,
        "training": _training,
        "choice": _choice,
        "classes": _classes,
        "samples": _samples,
        "proof": _proof,
        "quantization": _quantization,
        "parity": _parity,
        "reproduce": _reproduce,
    }
    made = {name: maker(report) for name, maker in makers.items()}
    return {name: section for name, section in made.items() if section is not None}


def _models(report: Mapping[str, Any]) -> Section | None:
    models = list(report.get("models") or ())
    if not models:
        return None
    test = int(number(((report.get("dataset") or {}).get("samples") or {}).get("test")) or 0)
    plots = []
    by_size = [m for m in models if _both(m, m.get("bytes"))]
    if by_size:
        told = "; ".join(
            f"{m.get('label')}: {percent(m['accuracy'])} at {size(m['bytes'])}" for m in by_size
        )
        figure = accuracy_versus_size(by_size, samples=test or None)
        plots.append(
            {
                "title": "Accuracy against file size",
                "svg": inline_svg(figure, name="plot-size", description=f"Scatter plot. {told}."),
            }
        )
    by_time = [m for m in models if _both(m, (m.get("latency_ms") or {}).get("p50"))]
    if by_time:
        told = "; ".join(
            f"{m.get('label')}: {percent(m['accuracy'])} at {milliseconds(m['latency_ms']['p50'])}"
            for m in by_time
        )
        figure = accuracy_versus_latency(by_time, samples=test or None)
        plots.append(
            {
                "title": "Accuracy against latency",
                "svg": inline_svg(figure, name="plot-time", description=f"Scatter plot. {told}."),
            }
        )
    return {"plots": plots, "test_samples": test, "latency": _how_timed(models, report)}


def _both(model: Mapping[str, Any], across: Any) -> bool:
    return number(model.get("accuracy")) is not None and (number(across) or 0) > 0


def _how_timed(models: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    """Returns under what conditions the latencies were taken, as far as the models share them."""
    timed = [m["latency_ms"] for m in models if (m.get("latency_ms") or {}).get("p50") is not None]
    if not timed:
        return ""
    parts = []
    if cpu := (report.get("machine") or {}).get("cpu"):
        parts.append(f"on {cpu}")
    threads = {latency.get("threads") for latency in timed}
    if len(threads) == 1 and (alone := threads.pop()):
        parts.append(f"{count(alone)} thread{'' if alone == 1 else 's'}")
    delegates = {latency.get("delegate") for latency in timed}
    if len(delegates) == 1 and (kernels := delegates.pop()):
        parts.append(str(kernels))
    elif len(delegates) > 1:
        parts.append("delegates: " + ", ".join(sorted(str(name or "none") for name in delegates)))
    return ", ".join(parts)


def _training(report: Mapping[str, Any]) -> Section | None:
    labels = {model.get("key"): model.get("label") for model in report.get("models") or ()}
    stages = []
    for place, (key, stage) in enumerate((report.get("training") or {}).items()):
        history = {name: values for name, values in (stage.get("history") or {}).items() if values}
        if not history:
            continue
        label = str(labels.get(key) or key.replace("_", " ").capitalize())
        figure = training_curves(history, epochs=stage.get("epochs"))
        stages.append(
            {
                "key": key,
                "label": label,
                "kept_epoch": stage.get("kept_epoch"),
                "svg": inline_svg(
                    figure, name=f"plot-training-{place}", description=_last_values(label, history)
                ),
            }
        )
    return {"stages": stages} if stages else None


def _last_values(label: str, history: Mapping[str, Sequence[Any]]) -> str:
    ends = []
    for name, values in history.items():
        first, last = number(values[0]), number(values[-1])
        if first is not None and last is not None:
            ends.append(f"{name} from {first:.4g} to {last:.4g}")
    epochs = len(next(iter(history.values())))
    return f"Training curves of {label} over {epochs} epochs. {'; '.join(ends)}."


def _choice(report: Mapping[str, Any]) -> Section | None:
    choice = report.get("choice")
    if not choice:
        return None
    trials = list(choice.get("trials") or ())
    section: Section = {**choice, "trials": trials, "svg": None, "share": None}
    whole, spent = number(choice.get("steps")), number(choice.get("trial_steps"))
    if whole and spent is not None:
        section["share"] = spent / whole
    if trials:
        last = max(trial["rung"] for trial in trials)
        ends = "; ".join(
            f"{trial['candidate']}: {percent(trial['accuracy'])}"
            for trial in trials
            if trial["rung"] == last
        )
        section["last"] = last
        section["svg"] = inline_svg(
            trial_curves(trials, chosen=choice["chosen"]),
            name="plot-trials",
            description=f"Validation accuracy of each candidate, rung by rung. In the end {ends}.",
        )
    return section


def _classes(report: Mapping[str, Any]) -> Section | None:
    model = shipped_model(report)
    if model is None:
        return None
    matrix = (report.get("confusion") or {}).get(model["key"])
    scores = (report.get("per_class") or {}).get(model["key"])
    if not matrix and not scores:
        return None
    classes = len(matrix or (scores or {})["f1"])
    names = _class_names(report, classes)
    section: Section = {"label": model.get("label") or model["key"], "rows": [], "classes": classes}
    section["confusions"] = list(_worst_confusions(matrix or (), names))
    section["svg"] = None
    if matrix:
        told = f"Confusion matrix of {classes} classes, true class by predicted class."
        mistakes = [
            f"{true} taken for {seen}: {often}" for true, seen, often in section["confusions"]
        ]
        if mistakes:
            told += f" Most frequent mistakes: {'; '.join(mistakes)}."
        section["svg"] = inline_svg(
            confusion_matrix(matrix, names), name="plot-confusion", description=told
        )
    if scores:
        f1 = [number(value) for value in scores["f1"]]
        known = [value for value in f1 if value is not None]
        worst = min(known) if len(set(known)) > 1 else None
        section["rows"] = [
            {
                "name": names[place],
                "precision": scores["precision"][place],
                "recall": scores["recall"][place],
                "f1": f1[place],
                "support": scores["support"][place],
                "worst": worst is not None and f1[place] == worst,
            }
            for place in range(len(f1))
        ]
    return section


def _class_names(report: Mapping[str, Any], classes: int) -> list[str]:
    names = (report.get("dataset") or {}).get("class_names") or ()
    return [str(names[n]) if n < len(names) else str(n) for n in range(classes)]


def _worst_confusions(
    matrix: Sequence[Sequence[int]], names: Sequence[str]
) -> Iterator[tuple[str, str, int]]:
    mistakes = [
        (often, row, column)
        for row, counts in enumerate(matrix)
        for column, often in enumerate(counts)
        if row != column and often
    ]
    mistakes.sort(key=lambda mistake: (-mistake[0], mistake[1], mistake[2]))
    for often, row, column in mistakes[:_MOST_CONFUSIONS]:
        yield names[row], names[column], often


def _samples(report: Mapping[str, Any]) -> Section | None:
    samples = list(report.get("samples") or ())
    if not samples:
        return None
    names = (report.get("dataset") or {}).get("class_names") or ()
    labels = {model.get("key"): str(model.get("label")) for model in report.get("models") or ()}
    cards = [_card(sample, names, labels) for sample in samples]
    # Stable: within each kind the report's order stays.
    cards.sort(key=lambda card: not card["disagree"])
    shown = cards[:_MOST_SAMPLES]
    return {
        "cards": shown,
        "disagreements": sum(card["disagree"] for card in shown),
        "left_out": len(cards) - len(shown),
    }


def _card(sample: Mapping[str, Any], names: Sequence[str], labels: Mapping[Any, str]) -> Section:
    def called(place: Any) -> str:
        known = isinstance(place, int) and 0 <= place < len(names)
        return str(names[place]) if known else str(place)

    truth = sample.get("label")
    predictions = [
        {
            "key": key,
            "model": _SHORT_LABELS.get(key) or labels.get(key) or key,
            "name": called(guess.get("class")),
            "confidence": guess.get("confidence"),
            "right": None if truth is None else guess.get("class") == truth,
        }
        for key, guess in (sample.get("predictions") or {}).items()
    ]
    chosen = {guess.get("class") for guess in (sample.get("predictions") or {}).values()}
    return {
        "index": sample.get("index"),
        "picture": picture(sample.get("image")),
        "truth": None if truth is None else called(truth),
        "predictions": predictions,
        "disagree": len(chosen) > 1,
    }


def _proof(report: Mapping[str, Any]) -> Section | None:
    proof = report.get("proof")
    if not proof:
        return None
    operators = list(proof.get("operators") or ())
    kinds = Counter(str(operator.get("name")) for operator in operators)
    return {
        "fully_integer": proof.get("fully_integer"),
        "float_tensors": proof.get("float_tensors"),
        "invoked_with": proof.get("invoked_with"),
        "operators": operators,
        "layers": any(operator.get("layer") for operator in operators),
        "kinds": kinds.most_common(),
        "dtypes": proof.get("tensor_dtypes") or {},
        "ends": [(end, proof[end]) for end in ("input", "output") if proof.get(end)],
    }


def _quantization(report: Mapping[str, Any]) -> Section | None:
    layers = list(report.get("quantization") or ())
    if not layers:
        return None
    return {
        "layers": layers,
        "ways": Counter(str(layer.get("how")) for layer in layers).most_common(),
        "reasons": any(layer.get("why") for layer in layers),
    }


def _parity(report: Mapping[str, Any]) -> Section | None:
    parity = report.get("parity")
    return dict(parity) if parity else None


def _reproduce(report: Mapping[str, Any]) -> Section | None:
    reproduce = report.get("reproduce") or {}
    section: Section = {
        "command": reproduce.get("command"),
        "artefacts": list(reproduce.get("artefacts") or ()),
        "seed": report.get("seed"),
        "versions": report.get("versions") or {},
        "machine": {name: value for name, value in (report.get("machine") or {}).items() if value},
        "seconds": report.get("seconds") or {},
        "recipe": _as_yaml(report.get("recipe")),
        "dataset": report.get("dataset") or {},
    }
    return section if any(value not in (None, "", [], {}) for value in section.values()) else None


def _as_yaml(recipe: Any) -> str:
    if not recipe:
        return ""
    # Through JSON, so that a tuple or a path in a report built by hand prints as plain YAML.
    plain = json.loads(json.dumps(recipe, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=88)
