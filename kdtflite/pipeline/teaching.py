"""A recipe's distillers: what they train with, and the teacher's outputs that they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.teachers.cache.writing import cache_teacher
from kdtflite.distillation.ways.semi_supervised import SemiSupervisedDistiller
from kdtflite.pipeline.losses import make_mixing
from kdtflite.pipeline.recipe import DistillationRecipe, TrainingRecipe
from kdtflite.pipeline.samples import TrainingSamples, make_augmentation

__all__ = ["cache_views", "make_distiller", "make_mixing_options"]


def make_distiller(
    student: Any,
    teacher: Any,
    options: dict[str, Any],
    recipe: DistillationRecipe,
    *,
    unlabeled: bool,
) -> Distiller:
    """Returns the Distiller of a recipe, not compiled.

    Args:
        student: The student.
        teacher: The teacher, or a cache of its outputs.
        options: The arguments of `Distiller` for the losses.
        recipe: The recipe of the training.
        unlabeled: Whether some samples have no label: on these the teacher alone teaches.
    """
    options = {**options, **make_mixing_options(recipe)}
    if not unlabeled:
        return Distiller(student, teacher, **options)
    return SemiSupervisedDistiller(student, teacher, threshold=0.0, **options)


def make_mixing_options(recipe: TrainingRecipe) -> dict[str, Any]:
    """Returns the arguments of `Distiller` for a training that mixes samples."""
    return {} if recipe.mixing is None else {"mixing": make_mixing(recipe.mixing.model_dump())}


def cache_views(
    teacher: Any,
    samples: TrainingSamples,
    recipe: DistillationRecipe,
    options: dict[str, Any],
    *,
    folder: Path,
    seed: int,
) -> TeacherCache:
    """Returns a teacher's outputs for the recipe's views of the samples, computed once.

    Args:
        teacher: The teacher.
        samples: The samples of the training.
        recipe: The recipe of the training; more views than epochs would not be seen.
        options: The arguments of `Distiller` for the losses, whose layers are kept, too.
        folder: The folder of the cache. A complete one is only opened.
        seed: Seed of the augmentation.
    """
    losses = [] if isinstance(options["losses"], str) else options["losses"]
    return cache_teacher(
        teacher,
        (samples.x, samples.y),
        folder,
        views=min(recipe.cached_views or 1, recipe.epochs),
        augmentation=make_augmentation(recipe),
        layers=[path for loss in losses for path in loss.teacher_layers],
        seed=seed,
    )
