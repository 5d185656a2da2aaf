"""From a model's outputs to classes and log-probabilities, ties included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdtflite.errors import DataError, ShapeMismatchError

__all__ = [
    "Decision",
    "decide",
    "guess_kind",
    "rank_true_classes",
    "refuse_broken_outputs",
    "to_log_probabilities",
    "to_two_classes",
    "validate_outputs",
]


@dataclass(frozen=True, eq=False)
class Decision:
    """A model's prediction for every sample, and where several classes tie.

    Attributes:
        predicted: Class with the highest score, the first one among equals as on a phone;
            shape (samples,), int64.
        tied: Whether several classes share the highest score, shape (samples,), bool.
        best: Whether a class has the highest score, shape (samples, classes), bool.
    """

    predicted: np.ndarray
    tied: np.ndarray
    best: np.ndarray


def to_two_classes(outputs: np.ndarray, kind: str) -> np.ndarray:
    """Returns the scores of classes 0 and 1 for a single output, the score of class 1.

    Args:
        outputs: Shape (samples, 1).
        kind: "probabilities": (1 - p, p); "logits": (0, z), whose softmax is sigmoid(z).

    Returns:
        Scores, shape (samples, 2), float64.
    """
    one = outputs.astype(np.float64)
    return np.hstack([1.0 - one if kind == "probabilities" else np.zeros_like(one), one])


def validate_outputs(outputs: np.ndarray, samples: int) -> np.ndarray:
    """Returns outputs as a table of shape (samples, classes), or (samples, 1).

    Raises:
        ShapeMismatchError: The model does not give one score per class for each sample.
        DataError: NaN or infinity among the outputs.
    """
    given = outputs.shape
    if outputs.ndim == 1:
        outputs = outputs[:, np.newaxis]
    # A fully convolutional classifier ends in (samples, 1, 1, classes).
    if outputs.ndim > 2 and all(size == 1 for size in outputs.shape[1:-1]):
        outputs = outputs.reshape(len(outputs), outputs.shape[-1])
    if outputs.ndim != 2 or len(outputs) != samples or outputs.shape[1] == 0:
        raise ShapeMismatchError(
            f"Expected one score per class for each sample, shape ({samples}, classes). Received: "
            f"outputs of shape {given}. A class per pixel is task='segmentation'; numbers are "
            "task='regression'."
        )
    refuse_broken_outputs(outputs)
    return outputs


def refuse_broken_outputs(outputs: np.ndarray) -> None:
    """Refuses outputs that are not finite.

    Args:
        outputs: Shape (samples, ...).

    Raises:
        DataError: NaN or infinity among them.
    """
    samples = len(outputs)
    wrong = np.flatnonzero(~np.isfinite(outputs.reshape(samples, -1)).all(axis=1))
    if wrong.size:
        raise DataError(
            f"Expected finite outputs. Received: NaN or infinity for {wrong.size} of {samples} "
            f"samples, first for sample {wrong[0]}. The model is broken (diverged training?)."
        )


def guess_kind(outputs: np.ndarray, step: float | None) -> str:
    """Distinguishes probabilities from logits by their values.

    Args:
        outputs: Shape (samples, classes).
        step: Step between two values of a quantized output, None for float.

    Returns:
        "probabilities" if every value lies in 0..1 and, for two or more classes, every sample's
        values sum to 1 except for rounding; otherwise "logits".
    """
    if outputs.min() < 0 or outputs.max() > 1:
        return "logits"
    if outputs.shape[1] == 1:
        return "probabilities"
    # Each value may be half a step off, and the highest code of int8 stands for 255/256.
    slack = 1e-3 + (step or 0.0) * (outputs.shape[1] / 2 + 1)
    sums = outputs.sum(axis=1, dtype=np.float64)
    return "probabilities" if np.abs(sums - 1.0).max() <= slack else "logits"


def decide(scores: np.ndarray) -> Decision:
    """Returns the class of every sample and its ties.

    Args:
        scores: Shape (samples, classes); higher is more likely.
    """
    best = scores == scores.max(axis=1, keepdims=True)
    return Decision(scores.argmax(axis=1), best.sum(axis=1) > 1, best)


def rank_true_classes(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns how many classes come before the true one; among equals the first class does.

    Args:
        scores: Shape (samples, classes).
        y: True classes, shape (samples,).

    Returns:
        0 where the true class is predicted; shape (samples,), int64.
    """
    true = np.take_along_axis(scores, y[:, np.newaxis], axis=1)
    earlier = np.arange(scores.shape[1]) < y[:, np.newaxis]
    return ((scores > true) | ((scores == true) & earlier)).sum(axis=1)


def to_log_probabilities(scores: np.ndarray, kind: str, floor: float) -> np.ndarray:
    """Returns log-probabilities.

    Args:
        scores: Logits or probabilities, shape (samples, classes).
        kind: "logits": log-softmax is taken; "probabilities": they are renormalized.
        floor: Least probability; below it the logarithm would grow without bound.

    Returns:
        Shape (samples, classes), float64.
    """
    scores = scores.astype(np.float64)
    if kind == "logits":
        shifted = scores - scores.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    total = scores.sum(axis=1, keepdims=True)
    # All codes are zero: nothing is known, which is the uniform distribution.
    share = np.divide(
        scores, total, out=np.full_like(scores, 1.0 / scores.shape[1]), where=total > 0
    )
    return np.log(np.clip(share, floor, 1.0))
