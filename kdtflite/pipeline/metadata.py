"""What a run writes into its files: labels, normalization, author and recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdtflite.data.sources import is_path
from kdtflite.data.splits import Dataset
from kdtflite.lite.metadata_writing import Normalization, add_metadata
from kdtflite.lite.model import LiteModel
from kdtflite.pipeline.recipe import Recipe

__all__ = ["add_run_metadata", "compute_recipe_digest"]


def add_run_metadata(
    lite: LiteModel, recipe: Recipe, dataset: Dataset, *, name: str, target: str
) -> LiteModel:
    """Returns a file of a run with its metadata.

    Args:
        lite: The converted file.
        recipe: The run's recipe.
        dataset: Its data, with the names of the classes.
        name: The model's key in the run.
        target: The target it was converted for.
    """
    about = recipe.conversion.metadata
    return add_metadata(
        lite,
        name=name,
        description=about.description or recipe.description,
        labels=_as_lines(dataset.class_names),
        normalization=_find_normalization(dataset),
        author=about.author,
        license=about.license,
        details={
            "target": target,
            "recipe": {"name": recipe.name, "sha256": compute_recipe_digest(recipe)},
            "data": dataset.name,
        },
    )


def compute_recipe_digest(recipe: Recipe) -> str:
    """Returns the SHA-256 of a recipe, which does not depend on where data and teacher are."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    del values["data"]["path"]
    if is_path(recipe.data.name):
        values["data"]["name"] = Path(recipe.data.name).name
    if recipe.teacher.load is not None:
        values["teacher"]["load"] = Path(recipe.teacher.load).name
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _as_lines(names: Sequence[str]) -> list[str]:
    # A line break in the name of a class should not stop a run after all its training.
    return [" ".join(name.split()) or f"class {number}" for number, name in enumerate(names)]


def _find_normalization(dataset: Dataset) -> Normalization | None:
    # Samples from 0 to 1 in the shape of an image are pixels divided by 255; for other samples
    # nothing is known.
    shape = dataset.sample_shape
    is_image = len(shape) == 3 and shape[-1] in (1, 3) and dataset.input_range == (0.0, 1.0)
    return (0.0, 255.0) if is_image else None
