"""The pipeline: a recipe runs every stage, and goes on where it stopped."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtflite.pipeline.recipe import Recipe, list_recipes, load_recipe
    from kdtflite.pipeline.run import RunResult

__all__ = ["Recipe", "RunResult", "list_recipes", "load_recipe"]

# `run` itself is not among them: it would hide the module of that name. It is `kdtflite.run`.
_HOMES = {"Recipe": "recipe", "RunResult": "run", "list_recipes": "recipe", "load_recipe": "recipe"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
