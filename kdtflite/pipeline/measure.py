"""Measures the files of a run and chooses the samples that its report shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import tf_keras as keras

from kdtflite.data.splits import Dataset
from kdtflite.evaluation.accuracy import evaluate
from kdtflite.evaluation.footprint import macs, parameters
from kdtflite.evaluation.latency import benchmark
from kdtflite.evaluation.parity import compare
from kdtflite.evaluation.result import Evaluation
from kdtflite.litemodel import LiteModel
from kdtflite.pipeline.recipe import EvaluationRecipe
from kdtflite.progress import say

__all__ = ["LABELS", "measure"]

LABELS = {
    "teacher": "Teacher (float)",
    "hard_labels": "Student, hard labels (float)",
    "distilled": "Student, distilled (float)",
    "ptq_int8": "Student, hard labels, PTQ int8",
    "distilled_int8": "Student, distilled QAT int8",
}
"""The models of a run by key, as its report calls them."""

_COMPARED = ("teacher", "distilled", "distilled_int8")


def measure(
    files: dict[str, LiteModel],
    keras_models: dict[str, keras.Model],
    dataset: Dataset,
    recipe: EvaluationRecipe,
) -> dict[str, Any]:
    """Evaluates and times every file on the test samples.

    Args:
        files: The files by key.
        keras_models: The Keras model that each file was made from.
        dataset: Its test samples are used here, for the first time.
        recipe: How much to measure.

    Returns:
        The report's sections "models", "confusion", "per_class", "samples" and "parity".
    """
    test, names = dataset.test, list(dataset.class_names)
    evaluations: dict[str, Evaluation] = {}
    models = []
    for key, lite in files.items():
        evaluations[key] = evaluate(lite, test, labels=names, progress=False)
        models.append(_entry(key, lite, keras_models[key], evaluations[key], recipe))
        say(
            f"{LABELS[key]}: accuracy {evaluations[key].accuracy:.4f}, "
            f"{len(lite.content):,} bytes, p50 {models[-1]['latency_ms']['p50']:.3f} ms"
        )
    parity = compare(keras_models["distilled_int8"], files["distilled_int8"], test.x)
    say(str(parity))
    shown = _disagreements_first(evaluations, test.y, recipe.pictures)
    return {
        "models": models,
        "confusion": {key: e.to_dict()["confusion"] for key, e in evaluations.items()},
        "per_class": {key: _per_class(e) for key, e in evaluations.items()},
        "samples": _samples(files, dataset, shown),
        "parity": {**parity.to_dict(), "argmax_agreement": parity.argmax_equal},
    }


def _entry(
    key: str,
    lite: LiteModel,
    model: keras.Model,
    evaluation: Evaluation,
    recipe: EvaluationRecipe,
) -> dict[str, Any]:
    speed = benchmark(lite, threads=recipe.threads, invokes=recipe.invokes, progress=False)
    latency = speed.latencies[0]
    return {
        "key": key,
        "label": LABELS[key],
        "format": lite.inputs[0].dtype,
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


def _per_class(evaluation: Evaluation) -> dict[str, list[float]]:
    return {
        "precision": [scores.precision for scores in evaluation.per_class],
        "recall": [scores.recall for scores in evaluation.per_class],
        "f1": [scores.f1 for scores in evaluation.per_class],
        "support": [scores.support for scores in evaluation.per_class],
    }


def _disagreements_first(
    evaluations: dict[str, Evaluation], labels: np.ndarray, count: int
) -> np.ndarray:
    """Returns which samples to show: where models differ, then where all err, then the rest."""
    chosen = np.stack([evaluations[key].predictions for key in _COMPARED])
    differ = (chosen != chosen[0]).any(axis=0)
    wrong = (chosen != labels).any(axis=0)
    return np.lexsort((np.arange(len(labels)), ~wrong, ~differ))[:count]


def _samples(
    files: dict[str, LiteModel], dataset: Dataset, shown: np.ndarray
) -> list[dict[str, Any]]:
    if not len(shown):
        return []
    x = dataset.test.x[shown]
    shares = {}
    for key in _COMPARED:
        logits = files[key].predict(x).astype(np.float64)
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
