"""Distillation losses, one a file; each cites its paper."""

from kdtflite.distillation.losses.base import DistillationLoss
from kdtflite.distillation.losses.hard_labels import HardLabels
from kdtflite.distillation.losses.soft_targets import SoftTargets

__all__ = ["DistillationLoss", "HardLabels", "SoftTargets"]
