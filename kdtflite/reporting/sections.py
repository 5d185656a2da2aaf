"""What each section of the page shows; None leaves a section out."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from PIL import Image

from kdtflite.reporting.formatting import (
    as_number,
    format_count,
    format_milliseconds,
    format_percent,
    format_size,
)
from kdtflite.reporting.plots import (
    plot_accuracy_versus_latency,
    plot_accuracy_versus_size,
    plot_confusion_matrix,
    plot_training_curves,
)
from kdtflite.reporting.schema import LatencyMs, ModelEntry, Report, Sample, read_report
from kdtflite.reporting.svg import inline_svg
from kdtflite.reporting.trial_plot import plot_trial_curves
from kdtflite.reporting.variants import VARIANTS
from kdtflite.reporting.verdict import find_shipped_model

__all__ = ["make_sections"]

Section = dict[str, Any]

_SHORT_LABELS = {variant.key: variant.short_label for variant in VARIANTS}
_MOST_SAMPLES = 60
_MOST_CONFUSIONS = 5
_SIDE = 112  # Pixels: what a card of the page shows.


def make_sections(report: Mapping[str, Any] | Report) -> dict[str, Section]:
    """Returns the sections that the report has data for, in the page's order."""
    report = read_report(report)
    makers: dict[str, Callable[[Report], Section | None]] = {
        "models": _make_models,
        "selection": _make_selection,
        "training": _make_training,
        "choice": _make_choice,
        "classes": _make_classes,
        "samples": _make_samples,
        "proof": _make_proof,
        "quantization": _make_quantization,
        "parity": _make_parity,
        "reproduce": _make_reproduce,
    }
    made = {name: maker(report) for name, maker in makers.items()}
    return {name: section for name, section in made.items() if section is not None}


def _make_models(report: Report) -> Section | None:
    models = report.models or []
    if not models:
        return None
    test = report.test_samples
    plots = []
    by_size = [m for m in models if _has_both(m, m.bytes)]
    if by_size:
        points = [
            f"{m.label}: {format_percent(m.accuracy)} at {format_size(m.bytes)}" for m in by_size
        ]
        axes = plot_accuracy_versus_size(_dump(by_size), samples=test or None)
        plots.append(_make_plot("Accuracy against file size", axes, "plot-size", points))
    by_time = [m for m in models if _has_both(m, m.p50)]
    if by_time:
        points = [
            f"{m.label}: {format_percent(m.accuracy)} at {format_milliseconds(m.p50)}"
            for m in by_time
        ]
        axes = plot_accuracy_versus_latency(_dump(by_time), samples=test or None)
        plots.append(_make_plot("Accuracy against latency", axes, "plot-time", points))
    return {"plots": plots, "test_samples": test, "latency": _describe_timing(models, report)}


def _dump(models: Sequence[ModelEntry]) -> list[dict[str, Any]]:
    return [model.model_dump() for model in models]


def _make_plot(title: str, axes: Any, name: str, points: Sequence[str]) -> dict[str, Any]:
    description = f"Scatter plot. {'; '.join(points)}."
    return {"title": title, "svg": inline_svg(axes, name=name, description=description)}


def _has_both(model: ModelEntry, across: Any) -> bool:
    return as_number(model.accuracy) is not None and (as_number(across) or 0) > 0


def _describe_timing(models: Sequence[ModelEntry], report: Report) -> str:
    """Returns the conditions of the latencies, as far as the models share them."""
    timed: list[LatencyMs] = [
        model.latency_ms
        for model in models
        if model.latency_ms is not None and model.latency_ms.p50 is not None
    ]
    if not timed:
        return ""
    parts = []
    if report.machine is not None and report.machine.cpu:
        parts.append(f"on {report.machine.cpu}")
    threads = {latency.threads for latency in timed}
    if len(threads) == 1 and (alone := threads.pop()):
        parts.append(f"{format_count(alone)} thread{'' if alone == 1 else 's'}")
    delegates = {latency.delegate for latency in timed}
    if len(delegates) == 1 and (kernels := delegates.pop()):
        parts.append(str(kernels))
    elif len(delegates) > 1:
        parts.append("delegates: " + ", ".join(sorted(str(name or "none") for name in delegates)))
    return ", ".join(parts)


def _make_selection(report: Report) -> Section | None:
    return None if report.selection is None else report.selection.model_dump()


def _make_training(report: Report) -> Section | None:
    labels = {model.key: model.label for model in report.models or ()}
    stages = []
    for place, (key, stage) in enumerate((report.training or {}).items()):
        history = {name: values for name, values in stage.history.items() if values}
        if not history:
            continue
        label = str(labels.get(key) or key.replace("_", " ").capitalize())
        figure = plot_training_curves(history, epochs=stage.epochs)
        stages.append(
            {
                "key": key,
                "label": label,
                "kept_epoch": stage.kept_epoch,
                "svg": inline_svg(
                    figure,
                    name=f"plot-training-{place}",
                    description=_describe_curves(label, history),
                ),
            }
        )
    return {"stages": stages} if stages else None


def _describe_curves(label: str, history: Mapping[str, Sequence[Any]]) -> str:
    ends = []
    for name, values in history.items():
        first, last = as_number(values[0]), as_number(values[-1])
        if first is not None and last is not None:
            ends.append(f"{name} from {first:.4g} to {last:.4g}")
    epochs = len(next(iter(history.values())))
    return f"Training curves of {label} over {epochs} epochs. {'; '.join(ends)}."


def _make_choice(report: Report) -> Section | None:
    choice = report.choice
    if choice is None:
        return None
    trials = choice.trials
    section: Section = {**choice.model_dump(), "trials": trials, "svg": None, "share": None}
    whole, spent = as_number(choice.steps), as_number(choice.trial_steps)
    if whole and spent is not None:
        section["share"] = spent / whole
    if trials:
        last = max(trial.rung for trial in trials)
        ends = "; ".join(
            f"{trial.candidate}: {format_percent(trial.accuracy)}"
            for trial in trials
            if trial.rung == last
        )
        section["last"] = last
        drawn = [trial.model_dump() for trial in trials]
        section["svg"] = inline_svg(
            plot_trial_curves(drawn, chosen=choice.chosen),
            name="plot-trials",
            description=f"Validation accuracy of each candidate by rung. In the last rung: {ends}.",
        )
    return section


def _make_classes(report: Report) -> Section | None:
    model = find_shipped_model(report)
    if model is None:
        return None
    matrix = (report.confusion or {}).get(model.key)
    scores = (report.per_class or {}).get(model.key)
    if matrix:
        classes = len(matrix)
    elif scores is not None:
        classes = len(scores.f1)
    else:
        return None
    names = _list_class_names(report, classes)
    section: Section = {"label": model.label or model.key, "rows": [], "classes": classes}
    section["confusions"] = list(_find_worst_confusions(matrix or (), names))
    section["svg"] = None
    if matrix:
        description = f"Confusion matrix of {classes} classes, true class by predicted class."
        mistakes = [
            f"{true} predicted as {seen}: {often}" for true, seen, often in section["confusions"]
        ]
        if mistakes:
            description += f" Most frequent mistakes: {'; '.join(mistakes)}."
        section["svg"] = inline_svg(
            plot_confusion_matrix(matrix, names), name="plot-confusion", description=description
        )
    if scores is not None:
        f1 = [as_number(value) for value in scores.f1]
        known = [value for value in f1 if value is not None]
        worst = min(known) if len(set(known)) > 1 else None
        section["rows"] = [
            {
                "name": names[place],
                "precision": scores.precision[place],
                "recall": scores.recall[place],
                "f1": f1[place],
                "support": scores.support[place],
                "worst": worst is not None and f1[place] == worst,
            }
            for place in range(len(f1))
        ]
    return section


def _list_class_names(report: Report, classes: int) -> list[str]:
    names = [] if report.dataset is None else report.dataset.class_names
    return [names[n] if n < len(names) else str(n) for n in range(classes)]


def _find_worst_confusions(
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


def _make_samples(report: Report) -> Section | None:
    samples = report.samples
    if not samples:
        return None
    names = [] if report.dataset is None else report.dataset.class_names
    labels = {model.key: model.label for model in report.models or ()}
    cards = [_make_card(sample, names, labels) for sample in samples]
    # Stable: within each kind the report's order stays.
    cards.sort(key=lambda card: not card["disagree"])
    shown = cards[:_MOST_SAMPLES]
    return {
        "cards": shown,
        "disagreements": sum(card["disagree"] for card in shown),
        "left_out": len(cards) - len(shown),
    }


def _make_card(sample: Sample, names: Sequence[str], labels: Mapping[str, str]) -> Section:
    def name_class(place: int) -> str:
        return names[place] if 0 <= place < len(names) else str(place)

    truth = sample.label
    predictions = [
        {
            "key": key,
            "model": _SHORT_LABELS.get(key) or labels.get(key) or key,
            "name": name_class(guess.number),
            "confidence": guess.confidence,
            "right": None if truth is None else guess.number == truth,
        }
        for key, guess in sample.predictions.items()
    ]
    chosen = {guess.number for guess in sample.predictions.values()}
    return {
        "index": sample.index,
        "picture": encode_picture(sample.image),
        "truth": None if truth is None else name_class(truth),
        "predictions": predictions,
        "disagree": len(chosen) > 1,
    }


def encode_picture(image: Any) -> str | None:
    """Returns an image as a `data:image/png;base64` URI, or None if it is not an image.

    Small images grow by a whole factor without smoothing, so that their pixels can be seen;
    large ones shrink.

    Args:
        image: Nested lists or an array, H×W, H×W×1 (gray) or H×W×3 (RGB), values from 0 to 1.
    """
    try:
        values = np.asarray(image, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    is_picture = values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3)
    if not is_picture or min(values.shape) < 1:
        return None
    pixels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    drawn = Image.fromarray(pixels)
    factor = _SIDE // max(drawn.size)
    if factor > 1:
        drawn = drawn.resize(
            (drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST
        )
    else:
        drawn.thumbnail((2 * _SIDE, 2 * _SIDE))
    data = io.BytesIO()
    drawn.save(data, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _make_proof(report: Report) -> Section | None:
    proof = report.proof
    if proof is None:
        return None
    operators = proof.operators or []
    kinds = Counter(operator.name for operator in operators)
    ends = (("input", proof.input), ("output", proof.output))
    return {
        "fully_integer": proof.fully_integer,
        "float_tensors": proof.float_tensors,
        "invoked_with": proof.invoked_with,
        "operators": operators,
        "layers": any(operator.layer for operator in operators),
        "kinds": kinds.most_common(),
        "dtypes": proof.tensor_dtypes,
        "ends": [(end, tensor) for end, tensor in ends if tensor is not None],
    }


def _make_quantization(report: Report) -> Section | None:
    layers = report.quantization
    if not layers:
        return None
    return {
        "layers": layers,
        "ways": Counter(layer.how for layer in layers).most_common(),
        "reasons": any(layer.why for layer in layers),
    }


def _make_parity(report: Report) -> Section | None:
    return None if report.parity is None else report.parity.model_dump()


def _make_reproduce(report: Report) -> Section | None:
    reproduce, machine = report.reproduce, report.machine
    described = {} if machine is None else machine.model_dump()
    section: Section = {
        "command": None if reproduce is None else reproduce.command,
        "artifacts": [] if reproduce is None else reproduce.artifacts,
        "seed": report.seed,
        "versions": report.versions or {},
        "machine": {name: value for name, value in described.items() if value},
        "seconds": report.seconds or {},
        "recipe": _as_yaml(report.recipe),
    }
    return section if any(value not in (None, "", [], {}) for value in section.values()) else None


def _as_yaml(recipe: Any) -> str:
    if not recipe:
        return ""
    # Through JSON, so that a tuple or a path in a report built by hand prints as plain YAML.
    plain = json.loads(json.dumps(recipe, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=88)
