"""Measures the files of a run and chooses the samples for its report."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.data.splits import Dataset
from kdtflite.evaluation.accuracy import evaluate
from kdtflite.evaluation.footprint import macs, parameters
from kdtflite.evaluation.latency import benchmark
from kdtflite.evaluation.paired import compare_paired
from kdtflite.evaluation.parity import compare
from kdtflite.evaluation.result import Evaluation
from kdtflite.lite.model import LiteModel
from kdtflite.pipeline.recipe import EvaluationRecipe
from kdtflite.progress import say
from kdtflite.reporting.variants import VARIANTS, get_variant, list_pairs

__all__ = ["measure"]

_LABELS = {variant.key: variant.label for variant in VARIANTS}


def measure(
    files: dict[str, LiteModel],
    keras_models: dict[str, keras.Model],
    dataset: Dataset,
    recipe: EvaluationRecipe,
    *,
    chosen: str,
) -> dict[str, Any]:
    """Evaluates and times every file on the test samples.

    Args:
        files: The files by key.
        keras_models: The Keras model that each file was made from, where there is one.
        dataset: Its test samples, which nothing used before.
        recipe: What to measure.
        chosen: Key of the file to ship.

    Returns:
        The report's sections "models", "comparisons", "confusion", "per_class", "samples" and
        "parity".
    """
    test, names = dataset.test, list(dataset.class_names)
    evaluations: dict[str, Evaluation] = {}
    models = []
    for key, lite in files.items():
        evaluations[key] = evaluate(lite, test, labels=names, progress=False)
        models.append(
            _measure_model(key, lite, keras_models.get(key, lite), evaluations[key], recipe)
        )
        say(
            f"{models[-1]['label']}: accuracy {evaluations[key].accuracy:.4f}, "
            f"{len(lite.content):,} bytes, p50 {models[-1]['latency_ms']['p50']:.3f} ms"
        )
    right = {key: each.predictions == test.y for key, each in evaluations.items()}
    comparisons = [
        {"first": one, "second": other, **compare_paired(right[one], right[other]).to_dict()}
        for one, other in list_pairs(files, chosen)
    ]
    parity = compare(keras_models[chosen], files[chosen], test.x)
    say(parity.summary())
    compared = [key for key in _list_compared(chosen) if key in files]
    shown = _choose_samples(evaluations, compared, test.y, recipe.pictures)
    return {
        "models": models,
        "comparisons": comparisons,
        "confusion": {key: e.to_dict()["confusion"] for key, e in evaluations.items()},
        "per_class": {key: _list_scores(e) for key, e in evaluations.items()},
        "samples": _describe_samples({key: files[key] for key in compared}, dataset, shown),
        "parity": {**parity.to_dict(), "argmax_agreement": parity.argmax_equal},
    }


def _measure_model(
    key: str,
    lite: LiteModel,
    model: keras.Model | LiteModel,
    evaluation: Evaluation,
    recipe: EvaluationRecipe,
) -> dict[str, Any]:
    speed = benchmark(lite, threads=recipe.threads, invokes=recipe.invokes, progress=False)
    latency = speed.latencies[0]
    dtype = lite.inputs[0].dtype
    return {
        "key": key,
        # A file that somebody else trained is of any dtype.
        "label": f"Teacher ({dtype})" if model is lite else _LABELS[key],
        "format": dtype,
        "file": f"files/{key}.tflite",
        "bytes": len(lite.content),
        "parameters": parameters(model),
        "macs": macs(model),
        "accuracy": evaluation.accuracy,
        "accuracy_if_ties_lost": evaluation.accuracy_if_ties_lost,
        "accuracy_if_ties_won": evaluation.accuracy_if_ties_won,
        "ties": evaluation.ties,
        "macro_f1": evaluation.macro_f1,
        "log_loss": evaluation.log_loss,
        "latency_ms": {
            "p50": latency.p50,
            "p90": latency.p90,
            "p99": latency.p99,
            "threads": latency.threads,
            "delegate": latency.delegate,
        },
        "latencies": [each.to_dict() for each in speed.latencies],
        "arena_bytes": speed.arena_bytes,
    }


def _list_scores(evaluation: Evaluation) -> dict[str, list[float]]:
    names = ("precision", "recall", "f1", "support")
    return {name: [getattr(scores, name) for scores in evaluation.per_class] for name in names}


def _list_compared(chosen: str) -> list[str]:
    """Returns the models whose predictions for single samples are shown."""
    variant = get_variant(chosen)
    float_key = None if variant is None else variant.float_key
    return ["teacher", *([float_key] if float_key else []), chosen]


def _choose_samples(
    evaluations: dict[str, Evaluation], compared: list[str], labels: np.ndarray, count: int
) -> np.ndarray:
    """Returns which samples to show: first where models disagree, then errors, then the rest."""
    chosen = np.stack([evaluations[key].predictions for key in compared])
    differ = (chosen != chosen[0]).any(axis=0)
    wrong = (chosen != labels).any(axis=0)
    return np.lexsort((np.arange(len(labels)), ~wrong, ~differ))[:count]


def _describe_samples(
    files: dict[str, LiteModel], dataset: Dataset, shown: np.ndarray
) -> list[dict[str, Any]]:
    if not len(shown):
        return []
    x = dataset.test.x[shown]
    shares = {}
    for key, lite in files.items():
        logits = lite.predict(x).astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares[key] = weights / weights.sum(axis=1, keepdims=True)
    low, high = dataset.input_range
    return [
        {
            "index": int(index),
            "image": ((x[i] - low) / (high - low)).round(4).tolist(),
            "label": int(dataset.test.y[index]),
            "predictions": {
                key: {"class": int(share[i].argmax()), "confidence": float(share[i].max())}
                for key, share in shares.items()
            },
        }
        for i, index in enumerate(shown)
    ]
