"""Recipes: what a run does, as data that are checked before anything starts."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from kdtflite.errors import ConfigurationError, choose
from kdtflite.pipeline.bounds import (
    ARCHITECTURES,
    MOST_PIXELS,
    Architecture,
    Real,
    Seed,
    Threads,
    Whole,
    Width,
)
from kdtflite.pipeline.training_recipe import (
    AugmentationRecipe,
    DistillationRecipe,
    EarlyStoppingRecipe,
    MixingRecipe,
    QuantizationRecipe,
    Strict,
    TrainingRecipe,
)
from kdtflite.pipeline.yaml_files import abbreviate, find_absurd_value, parse_yaml, read_yaml
from kdtflite.reporting.variants import DEFAULT, SHIPPABLE

__all__ = [
    "AugmentationRecipe",
    "ConversionRecipe",
    "DataRecipe",
    "DistillationRecipe",
    "EarlyStoppingRecipe",
    "EvaluationRecipe",
    "MetadataRecipe",
    "MixingRecipe",
    "ModelRecipe",
    "QuantizationRecipe",
    "Recipe",
    "TrainingRecipe",
    "list_recipes",
    "load_recipe",
]


class DataRecipe(Strict):
    """Where the samples come from."""

    name: str = Field(
        description="digits, mnist, fashion_mnist, cifar10, or a path to a .npz "
        "file or an image folder of class sub-folders"
    )
    path: str = Field(
        "auto",
        description="file or folder that holds a named data set; 'auto' "
        "downloads it where it is not embedded",
    )
    image_size: int | list[int] | None = Field(
        None,
        description="height and width, or one number for both, that the images of a folder are "
        "resized to; by default the size that all of them have",
    )
    channels: Literal[1, 3] = Field(
        3, description="channels of the images of a folder: 3 for RGB, 1 for gray"
    )
    labeled: Real | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the training samples that keep their label, class by class; the "
        "teacher alone teaches on the others. By default all keep it, as with 1",
    )

    @model_validator(mode="before")
    @classmethod
    def _either_spelling(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "labelled" not in values:
            return values
        if "labeled" in values:
            raise ValueError("give either `labeled` or `labelled`, which mean the same")
        return {"labeled" if key == "labelled" else key: values[key] for key in values}

    @field_validator("image_size", mode="before")
    @classmethod
    def _one_or_two_sizes(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list) else [value, value]
        if value is not None and (
            len(sizes) != 2 or any(type(n) is not int or not 1 <= n <= MOST_PIXELS for n in sizes)
        ):
            raise ValueError(
                f"expected pixels, one whole number from 1 to {MOST_PIXELS:,} or [height, width]"
            )
        return value


class ModelRecipe(Strict):
    """A model to build, or a trained one to load."""

    architecture: Architecture | None = Field(None, description=", ".join(ARCHITECTURES))
    widths: list[Width] | None = Field(None, max_length=100, description="channels of each block")
    load: str | None = Field(
        None, description="path of a trained .keras, .h5, .tflite or .onnx file or a SavedModel"
    )
    training: TrainingRecipe | None = Field(None, description="how it is trained if it is built")

    @model_validator(mode="after")
    def _one_origin(self) -> ModelRecipe:
        if (self.load is None) == (self.architecture is None):
            raise ValueError("give either `architecture` (to build and train) or `load` (a path)")
        if self.architecture is not None and self.training is None:
            raise ValueError("a model that is built needs `training`")
        if self.load is not None and self.widths is not None:
            raise ValueError("`widths` are for a model that is built, not for `load`")
        return self


class StudentRecipe(Strict):
    """The model to ship."""

    architecture: Architecture = Field("depthwise", description=", ".join(ARCHITECTURES))
    widths: list[Width] | None = Field(None, max_length=100, description="channels of each block")


class MetadataRecipe(Strict):
    """What the files' metadata hold besides labels, normalization and recipe."""

    description: str = Field(
        "", description="what the models do; by default the recipe's description"
    )
    author: str = Field("", description="who made the models")
    license: str = Field("", description="their license, preferably as an SPDX identifier")


class ConversionRecipe(Strict):
    """The file."""

    target: Literal["int8", "int8x4"] = Field(
        "int8",
        description="what the file is proven to be; with int8x4, a file with int4 weights is made "
        "as well, unless `variants` says otherwise",
    )
    io_dtype: Literal["int8", "uint8"] = Field("int8", description="dtype of inputs and outputs")
    representative_samples: Whole = Field(500, ge=1, description="training samples to calibrate on")
    names: Literal["all", "layers", "none"] = Field(
        "all", description="what the files keep of the names of inner tensors"
    )
    metadata: MetadataRecipe = MetadataRecipe()


class EvaluationRecipe(Strict):
    """What is measured on the files."""

    invokes: Whole = Field(200, ge=200, description="timed invokes per file")
    threads: list[Threads] = Field(
        [1], min_length=1, max_length=100, description="threads to time with"
    )
    pictures: Whole = Field(24, ge=0, description="test samples shown in the report")


class Recipe(Strict):
    """A whole run: data → teacher → students → integer file → report."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_.-]+$", max_length=100, description="name of the run's folder"
    )
    description: str = Field("", description="one sentence for `kdtflite recipes`")
    seed: Seed = Field(1, description="seed of splits, weights and batches")
    data: DataRecipe
    teacher: ModelRecipe
    student: StudentRecipe = StudentRecipe()
    distillation: DistillationRecipe
    quantization: QuantizationRecipe = Field(
        description="quantization-aware distillation, starting from the distilled student; by "
        "default like the distillation, for an eighth of its epochs and, where it says no "
        "learning rate, at a tenth of that one"
    )
    hard_labels: TrainingRecipe | None = Field(
        None,
        description="training of the baseline; by default like the distillation, without a teacher",
    )
    variants: list[str] = Field(
        list(DEFAULT["int8"]),
        min_length=1,
        description="the files to make, of which the best on validation samples is shipped: "
        + ", ".join(SHIPPABLE)
        + "; by default all, and those with int4 weights only if the target is int8x4",
    )
    conversion: ConversionRecipe = ConversionRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @model_validator(mode="before")
    @classmethod
    def _complete_variants(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "variants" in values:
            return values
        conversion = values.get("conversion")
        target = conversion.get("target") if isinstance(conversion, dict) else None
        return {**values, "variants": list(DEFAULT["int8x4"])} if target == "int8x4" else values

    @model_validator(mode="before")
    @classmethod
    def _complete_quantization(cls, values: Any) -> Any:
        """Fills in what `quantization` leaves out: a short tail at a low rate is enough."""
        distillation = values.get("distillation") if isinstance(values, dict) else None
        if not isinstance(distillation, dict):
            return values
        rate, epochs = distillation.get("learning_rate"), distillation.get("epochs")
        tail = values.get("quantization")
        if tail is None and isinstance(epochs, int):
            shared = {*TrainingRecipe.model_fields, "cached_views"} - {"learning_rate"}
            tail = {key: value for key, value in distillation.items() if key in shared}
            tail["epochs"] = max(1, round(epochs / 8))
        if isinstance(tail, dict) and isinstance(rate, int | float):
            tail = {"learning_rate": rate / 10, **tail}
        return values if tail is None else {**values, "quantization": tail}

    @field_validator("name")
    @classmethod
    def _name_a_folder(cls, value: str) -> str:
        if not value.strip("."):
            raise ValueError("expected the name of a folder, with a letter or a digit")
        return value

    @field_validator("variants")
    @classmethod
    def _known_once(cls, value: list[str]) -> list[str]:
        unknown = [key for key in value if key not in SHIPPABLE]
        if unknown or len(set(value)) < len(value):
            raise ValueError(f"expected each once, of: {', '.join(SHIPPABLE)}")
        return value

    @property
    def baseline(self) -> TrainingRecipe:
        """How the hard-label student is trained."""
        if self.hard_labels is not None:
            return self.hard_labels
        # Only the teacher should make the difference.
        return _leave_out_teacher(self.distillation)

    @property
    def baseline_quantization(self) -> TrainingRecipe:
        """How the hard-label student is trained quantization-aware."""
        return _leave_out_teacher(self.quantization)


def _leave_out_teacher(recipe: DistillationRecipe) -> TrainingRecipe:
    shared = set(TrainingRecipe.model_fields)
    return TrainingRecipe(**recipe.model_dump(include=shared))


def list_recipes() -> dict[str, str]:
    """Returns the descriptions of the recipes that come with kdtflite, by name."""
    return {name: load_recipe(name).description for name in _find_installed()}


def load_recipe(recipe: str | os.PathLike[str] | dict[str, Any] | Recipe) -> Recipe:
    """Reads a recipe by name, from a YAML file, or from a dict.

    Raises:
        ConfigurationError: No such recipe or file, invalid YAML, an unknown key (the message
            lists the valid ones), or a value out of its range.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, dict):
        return _validate(recipe, "the recipe")
    if not isinstance(recipe, str | os.PathLike):
        raise ConfigurationError(
            "Expected the name of a recipe, the path of a .yaml file, or a dict of its values. "
            f"Received: {type(recipe).__name__}."
        )
    text = os.fsdecode(recipe)
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        values = read_yaml(Path(text))
    else:
        entry = _find_installed()[choose(text, _find_installed(), what="recipe")]
        values = parse_yaml(entry.read_bytes(), text)
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"Expected {text} to hold keys and values ({', '.join(Recipe.model_fields)}). "
            f"Received: {type(values).__name__}."
        )
    return _validate(values, text)


def _find_installed() -> dict[str, Any]:
    folder = resources.files("kdtflite") / "recipes"
    return {
        entry.name.removesuffix(".yaml"): entry
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def _validate(values: dict[str, Any], source: str) -> Recipe:
    try:
        if problem := find_absurd_value(values):
            raise ConfigurationError(f"{source} cannot be used: {problem}.")
        return Recipe.model_validate(values)
    except RecursionError as error:
        raise ConfigurationError(f"{source} cannot be used: it contains itself.") from error
    except ValidationError as error:
        faults = "; ".join(_describe_fault(detail) for detail in error.errors())
        raise ConfigurationError(f"{source} cannot be used: {faults}.") from error


def _describe_fault(detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        valid = ", ".join(_list_keys(path[:-1]))
        return f"unknown key {abbreviate(where)} (valid there: {valid})"
    if detail["type"] == "missing":
        return f"key {where!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    received = (
        "" if isinstance(detail["input"], dict) else f", received {abbreviate(detail['input'])}"
    )
    return f"{where or 'the recipe'}: {message[:1].lower()}{message[1:]}{received}"


def _list_keys(path: list[str]) -> list[str]:
    """Returns the keys that are valid at `path`."""
    model: type[BaseModel] = Recipe
    for part in path:
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
