"""The candidates of `losses="auto"`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.distillation.losses.logits.hard_targets import HardTargets
from kdtflite.distillation.losses.logits.logit_standardization import LogitStandardization
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.schedules import Schedule

__all__ = ["CANDIDATES", "HARD_LABELS", "LABEL_SMOOTHING", "Candidate"]


@dataclass(frozen=True)
class Candidate:
    """One way to train a student.

    Attributes:
        name: Its name in tables and reports; no two are alike.
        losses: A function that makes the losses, new ones at every call: some remember samples.
        hard_label_weight: As `Distiller` takes it.
        loss_weights: As `Distiller` takes them.
        has_teacher: Whether the student learns from the teacher.
    """

    name: str
    losses: Callable[[], Sequence[DistillationLoss]]
    hard_label_weight: float | Schedule | None = None
    loss_weights: Sequence[float | Schedule] | None = None
    has_teacher: bool = True


HARD_LABELS = Candidate("hard labels alone", lambda: [], 1.0, has_teacher=False)
"""No distillation: what every other candidate has to beat."""

LABEL_SMOOTHING = Candidate(
    "label smoothing 0.1, no teacher",
    # Of the teacher's class, smoothed by 1, the uniform distribution is left.
    lambda: [HardTargets(label_smoothing=1.0, name="uniform_targets")],
    0.9,
    has_teacher=False,
)
"""Label smoothing (arXiv 1512.00567). Soft targets smooth labels, too: what a student gains by that
alone should not be taken for what its teacher knows."""

# The most promising first: with few parameters, following a soft teacher costs more than it gives.
CANDIDATES = (
    HARD_LABELS,
    Candidate("soft targets, T=1, no hard labels", lambda: [SoftTargets(1.0)], 0.0),
    Candidate("soft targets, T=1, hard labels 0.5", lambda: [SoftTargets(1.0)], 0.5),
    Candidate("soft targets, T=2, hard labels 0.3", lambda: [SoftTargets(2.0)], 0.3),
    LABEL_SMOOTHING,
    Candidate(
        "standardized soft targets, hard labels 0.5",
        lambda: [LogitStandardization(SoftTargets(1.0), base_temperature=2.0)],
        0.5,
    ),
    Candidate("soft targets, T=4, hard labels 0.1", lambda: [SoftTargets(4.0)], 0.1),
)
"""Hinton's soft targets from nearly the hard labels to the paper's own setting, standardized logits
(arXiv 1503.02531, 2403.01427), and label smoothing."""
