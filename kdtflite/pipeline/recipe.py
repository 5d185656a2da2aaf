"""Recipes: what a run does, as data, checked before anything starts."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdtflite.errors import ConfigurationError, choose

__all__ = [
    "AugmentationRecipe",
    "ConversionRecipe",
    "DataRecipe",
    "DistillationRecipe",
    "EvaluationRecipe",
    "ModelRecipe",
    "Recipe",
    "TrainingRecipe",
    "list_recipes",
    "load_recipe",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DataRecipe(_Strict):
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
        3, description="of the images of a folder: 3 for RGB, 1 for grey"
    )

    @field_validator("image_size", mode="before")
    @classmethod
    def _one_or_two_sizes(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list) else [value, value]
        if value is not None and (
            len(sizes) != 2 or any(type(n) is not int or n < 1 for n in sizes)
        ):
            raise ValueError("expected pixels, one whole number from 1 up or [height, width]")
        return value


class AugmentationRecipe(_Strict):
    """How far training images are moved at random."""

    shift: float = Field(0.0, ge=0, description="largest shift, pixels")
    rotation: float = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    zoom: float = Field(0.0, ge=0, lt=1, description="largest change of size, fraction")
    flip: bool = Field(False, description="mirror every second image")


class TrainingRecipe(_Strict):
    """One training: Adam with warm-up and cosine decay."""

    epochs: int = Field(ge=1, description="passes over the training samples")
    batch_size: int = Field(128, ge=1, description="samples a step")
    learning_rate: float = Field(gt=0, description="peak of the learning rate")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear rise to the peak")
    augmentation: AugmentationRecipe = AugmentationRecipe()


class ModelRecipe(_Strict):
    """A model to build, or a trained one to load."""

    architecture: str | None = Field(None, description="convnet, depthwise or resnet")
    widths: list[int] | None = Field(None, description="channels of each block")
    load: str | None = Field(None, description="path of a trained .keras, .h5 or SavedModel")
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


class StudentRecipe(_Strict):
    """The model to ship."""

    architecture: str = Field("depthwise", description="convnet, depthwise or resnet")
    widths: list[int] | None = Field(None, description="channels of each block")


class DistillationRecipe(TrainingRecipe):
    """Training by the teacher: T² KL of soft targets, mixed with hard labels."""

    temperature: float = Field(4.0, gt=0, description="T of the soft targets")
    hard_label_weight: float = Field(
        0.1, ge=0, le=1, description="weight of the hard labels; the soft targets get the rest"
    )


class ConversionRecipe(_Strict):
    """The file."""

    target: Literal["int8"] = Field("int8", description="what is promised and proven")
    io_dtype: Literal["int8", "uint8"] = Field("int8", description="dtype of inputs and outputs")
    representative_samples: int = Field(500, ge=1, description="training samples to calibrate on")


class EvaluationRecipe(_Strict):
    """What is measured on the files."""

    invokes: int = Field(200, ge=200, description="timed invokes a file")
    threads: list[int] = Field([1], min_length=1, description="threads to time with")
    pictures: int = Field(24, ge=0, description="test samples shown in the report")


class Recipe(_Strict):
    """A whole run: data → teacher → students → integer file → report."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="name of the run's folder")
    description: str = Field("", description="one sentence for `kdtflite recipes`")
    seed: int = Field(1, ge=0, lt=2**31, description="seed of splits, weights and batches")
    data: DataRecipe
    teacher: ModelRecipe
    student: StudentRecipe = StudentRecipe()
    distillation: DistillationRecipe
    quantization: DistillationRecipe = Field(
        description="quantization-aware distillation, going on from the distilled student"
    )
    hard_labels: TrainingRecipe | None = Field(
        None,
        description="the baseline's training; by default as distillation, for as many "
        "epochs as distillation and quantization together",
    )
    conversion: ConversionRecipe = ConversionRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @property
    def baseline(self) -> TrainingRecipe:
        """How the hard-label student is trained."""
        if self.hard_labels is not None:
            return self.hard_labels
        # As many epochs as the student to ship gets in all: it should win by its teacher alone.
        shared = self.distillation.model_dump(exclude={"temperature", "hard_label_weight"})
        shared["epochs"] += self.quantization.epochs
        return TrainingRecipe(**shared)


def list_recipes() -> dict[str, str]:
    """Returns the recipes that come with kdtflite, name and description."""
    return {name: load_recipe(name).description for name in _installed()}


def load_recipe(recipe: str | os.PathLike[str] | dict[str, Any] | Recipe) -> Recipe:
    """Reads a recipe by name, from a YAML file, or from a dict.

    Raises:
        ConfigurationError: No such recipe or file, YAML that is none, an unknown key (the valid
            ones are listed), a value out of its range.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, dict):
        return _validated(recipe, "the recipe")
    text = str(recipe)
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        path = Path(text)
        if not path.is_file():
            raise ConfigurationError(f"There is no recipe file {path}. Expected a .yaml file.")
        content = path.read_bytes()
    else:
        content = _installed()[choose(text, _installed(), what="recipe")].read_bytes()
    try:
        values = yaml.safe_load(content.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{text} is not valid YAML: {' '.join(str(error).split())}."
        ) from (error)
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"Expected {text} to hold keys and values ({', '.join(Recipe.model_fields)}). "
            f"Received: {type(values).__name__}."
        )
    return _validated(values, text)


def _installed() -> dict[str, Any]:
    folder = resources.files("kdtflite") / "recipes"
    return {
        entry.name.removesuffix(".yaml"): entry
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def _validated(values: dict[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(detail) for detail in error.errors())
        raise ConfigurationError(f"{source} cannot be used: {faults}.") from error


def _fault(detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        valid = ", ".join(_keys_at(path[:-1]))
        return f"unknown key {where!r} (valid there: {valid})"
    if detail["type"] == "missing":
        return f"key {where!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    received = "" if isinstance(detail["input"], dict) else f", received {detail['input']!r}"
    return f"{where or 'the recipe'}: {message[:1].lower()}{message[1:]}{received}"


def _keys_at(path: list[str]) -> list[str]:
    """Returns the keys that the schema knows at `path`."""
    model: type[BaseModel] = Recipe
    for part in path:
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
