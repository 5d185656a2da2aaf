"""What `losses="auto"` chooses among."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.distillation.losses.logits.logit_standardization import LogitStandardization
from kdtflite.distillation.losses.logits.soft_targets import SoftTargets
from kdtflite.distillation.schedules import Schedule

__all__ = ["CANDIDATES", "HARD_LABELS", "Candidate"]


@dataclass(frozen=True)
class Candidate:
    """One way to train a student.

    Attributes:
        name: Names it in tables and reports; no two alike.
        losses: Makes the losses, new ones at every call: some remember what they saw.
        hard_label_weight: As the Distiller takes it.
        loss_weights: As the Distiller takes them.
    """

    name: str
    losses: Callable[[], Sequence[DistillationLoss]]
    hard_label_weight: float | Schedule | None = None
    loss_weights: Sequence[float | Schedule] | None = None


HARD_LABELS = Candidate("hard labels alone", lambda: [], 1.0)
"""No distillation: what every other candidate has to beat."""

# The likeliest first: with few parameters, following a soft teacher costs more than it gives.
CANDIDATES = (
    HARD_LABELS,
    Candidate("soft targets, T=1, no hard labels", lambda: [SoftTargets(1.0)], 0.0),
    Candidate("soft targets, T=1, hard labels 0.5", lambda: [SoftTargets(1.0)], 0.5),
    Candidate("soft targets, T=2, hard labels 0.3", lambda: [SoftTargets(2.0)], 0.3),
    Candidate(
        "standardized soft targets, hard labels 0.5",
        lambda: [LogitStandardization(SoftTargets(1.0), base_temperature=2.0)],
        0.5,
    ),
    Candidate("soft targets, T=4, hard labels 0.1", lambda: [SoftTargets(4.0)], 0.1),
)
"""Hinton's soft targets from nearly the hard labels to the paper's own setting, and standardized
logits (arXiv 1503.02531, 2403.01427)."""
