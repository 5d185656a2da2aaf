"""Distillation: a student learns from a teacher's outputs as well as from the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Distiller", "losses", "teachers"]

if TYPE_CHECKING:
    from kdtflite.distillation import losses, teachers
    from kdtflite.distillation.distiller import Distiller


def __getattr__(name: str) -> Any:
    import importlib

    if name == "Distiller":
        return importlib.import_module("kdtflite.distillation.distiller").Distiller
    if name in ("losses", "teachers"):
        return importlib.import_module(f"kdtflite.distillation.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
