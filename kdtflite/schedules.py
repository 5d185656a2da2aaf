"""Weights and temperatures that change over the epochs: `from kdtflite.schedules import Cosine`."""

from kdtflite.distillation.schedules import (
    Constant,
    Cosine,
    GradualSoftLossReduction,
    Linear,
    Schedule,
)

__all__ = ["Constant", "Cosine", "GradualSoftLossReduction", "Linear", "Schedule"]
