"""What a run writes into its files: labels, normalisation, author, and which recipe made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdtflite.conversion.metadata import Normalisation, add_metadata
from kdtflite.data.sources import is_path
from kdtflite.data.splits import Dataset
from kdtflite.litemodel import LiteModel
from kdtflite.pipeline.recipe import Recipe

__all__ = ["recipe_digest", "with_run_metadata"]


def with_run_metadata(
    lite: LiteModel, recipe: Recipe, dataset: Dataset, *, name: str, target: str
) -> LiteModel:
    """Returns a file of a run with its metadata.

    Args:
        lite: The file, as converted.
        recipe: The run's recipe.
        dataset: Its data, which name the classes.
        name: The model's key in the run.
        target: What it was converted to.
    """
    about = recipe.conversion.metadata
    return add_metadata(
        lite,
        name=name,
        description=about.description or recipe.description,
        labels=_one_line_each(dataset.class_names),
        normalisation=_normalisation(dataset),
        author=about.author,
        license=about.license,
        details={
            "target": target,
            "recipe": {"name": recipe.name, "sha256": recipe_digest(recipe)},
            "data": dataset.name,
        },
    )


def recipe_digest(recipe: Recipe) -> str:
    """Returns the SHA-256 of a recipe, the same wherever the data and the teacher lie."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    del values["data"]["path"]
    if is_path(recipe.data.name):
        values["data"]["name"] = Path(recipe.data.name).name
    if recipe.teacher.load is not None:
        values["teacher"]["load"] = Path(recipe.teacher.load).name
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _one_line_each(names: Sequence[str]) -> list[str]:
    # A run should not end, after its trainings, for a blank in the name of a class.
    return [" ".join(name.split()) or f"class {number}" for number, name in enumerate(names)]


def _normalisation(dataset: Dataset) -> Normalisation | None:
    # Samples from 0 to 1 in the shape of an image are pixels divided by 255; what others were
    # made from is not known here.
    shape = dataset.sample_shape
    is_image = len(shape) == 3 and shape[-1] in (1, 3) and dataset.input_range == (0.0, 1.0)
    return (0.0, 255.0) if is_image else None
