"""Checks a recipe against its data: every model and loss is made before the first one trains."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from kdtflite.distillation.distiller import Distiller
from kdtflite.errors import ConfigurationError, KdtfliteError, to_line
from kdtflite.pipeline.stages import (
    Run,
    build_student,
    build_teacher,
)
from kdtflite.pipeline.teaching import make_distiller, make_mixing_options
from kdtflite.progress import mute
from kdtflite.quantization.aware import quantize_aware

__all__ = ["check_recipe"]

# Enough to set ranges by: the model is thrown away.
_SAMPLES = 64


def check_recipe(run: Run) -> None:
    """Builds everything that the recipe trains, once, and throws it away.

    What does not fit the data or each other (an architecture, a tapped layer, a loss) is found in
    seconds instead of after the stages before it.

    Args:
        run: The run, whose data are there.

    Raises:
        KdtfliteError: Something cannot be made; the message names the part of the recipe.
    """
    if run.dataset.classes < 2:
        raise ConfigurationError(
            f"Expected at least 2 classes to tell apart. Received: {run.dataset.classes} in "
            f"{run.dataset.name}."
        )
    with mute():  # the stages say it again, of the models that are kept
        _make_everything(run)
    keras.backend.clear_session()


def _make_everything(run: Run) -> None:
    recipe = run.recipe
    teacher = _make("teacher", build_teacher, run)
    student = _make("student", build_student, run)
    options = recipe.distillation.distiller_options()
    few = {"unlabeled": run.dataset.unlabeled is not None}
    _make("distillation", make_distiller, student, teacher, options, recipe.distillation, **few)
    if recipe.quantization.losses != "distillation":
        options = recipe.quantization.distiller_options()
    elif options["losses"] != "auto":
        options = recipe.distillation.distiller_options()  # losses serve one Distiller
    else:
        options = {"losses": None}  # one that is chosen fits every student
    aware = _make("quantization", quantize_aware, student, run.dataset.train.x[:_SAMPLES])
    _make("quantization", make_distiller, aware, teacher, options, recipe.quantization, **few)
    for name, training in (("teacher", recipe.teacher.training), ("baseline", recipe.baseline)):
        if training is not None and (mixing := make_mixing_options(training)):
            _make(name, Distiller, student, None, losses=[], **mixing)


def _make(part: str, make: Any, *arguments: Any, **options: Any) -> Any:
    """Calls `make`; an error names the part of the recipe."""
    try:
        return make(*arguments, **options)
    except KdtfliteError as error:
        raise type(error)(f"The recipe's {part} cannot be used: {error}") from error
    except (ValueError, TypeError) as error:  # Keras refuses a shape
        raise ConfigurationError(
            f"The recipe's {part} cannot be built for the data: {to_line(error)[:400]}."
        ) from error
