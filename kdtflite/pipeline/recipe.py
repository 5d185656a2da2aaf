"""Recipes: what a run does, as data, checked before anything starts."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdtflite.errors import ConfigurationError, choose

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


class MixingRecipe(_Strict):
    """Training samples that are mixtures of two, the same for student and teacher."""

    mixup: float | None = Field(None, gt=0, description="alpha of MixUp; the paper has 0.2")
    cutmix: float | None = Field(None, gt=0, description="alpha of CutMix; the paper has 1")

    @model_validator(mode="after")
    def _one_way(self) -> MixingRecipe:
        if (self.mixup is None) == (self.cutmix is None):
            raise ValueError("give either `mixup` or `cutmix`, with its alpha")
        return self


class EarlyStoppingRecipe(_Strict):
    """Ends a training that gets no better, and keeps the weights of its best epoch."""

    patience: int = Field(ge=1, description="epochs without a better validation accuracy")


class TrainingRecipe(_Strict):
    """One training: Adam with warm-up and cosine decay."""

    epochs: int = Field(ge=1, description="passes over the training samples")
    batch_size: int = Field(128, ge=1, description="samples a step")
    learning_rate: float = Field(gt=0, description="peak of the learning rate")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear rise to the peak")
    augmentation: AugmentationRecipe = AugmentationRecipe()
    mixing: MixingRecipe | None = Field(
        None, description="mix samples: {mixup: alpha} or {cutmix: alpha}"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decay of the kernels (AdamW); biases and norms have none"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the hard labels spread over all classes"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of all gradients together"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="momentum of a moving average of the weights, which is kept"
    )
    early_stopping: EarlyStoppingRecipe | None = Field(
        None, description="end where the validation accuracy gets no better: {patience: epochs}"
    )


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
    """Training by the teacher: chosen on the validation samples, or as named here."""

    losses: Any = Field(
        None,
        description="auto (the default): chosen by short runs; or a list, each with `name`, "
        "perhaps `weight`, and the loss's own parameters",
    )
    temperature: Any = Field(
        None, description="T of the soft targets, in place of `losses`; 4 if only the weight is set"
    )
    hard_label_weight: Any = Field(
        None, description="weight of the hard labels, 0 to 1; losses on logits share the rest"
    )

    _without: ClassVar[str] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _default(cls, values: Any) -> Any:
        named = ("losses", "temperature", "hard_label_weight")
        if isinstance(values, dict) and all(values.get(name) is None for name in named):
            return {**values, "losses": cls._without}
        return values

    @field_validator("losses")
    @classmethod
    def _word_or_list(cls, value: Any) -> Any:
        entries = isinstance(value, list) and all(
            isinstance(entry, dict) and "name" in entry for entry in value
        )
        if value not in (None, cls._without) and not entries:
            raise ValueError(
                f"expected {cls._without!r} or a list such as [{{name: soft_targets, "
                "temperature: 2.0}]"
            )
        return value

    @model_validator(mode="after")
    def _one_way(self) -> DistillationRecipe:
        word = isinstance(self.losses, str)
        if word and (self.temperature is not None or self.hard_label_weight is not None):
            raise ValueError(
                f"`losses: {self.losses}` brings temperature and weights with it; leave out "
                "`losses`, or `temperature` and `hard_label_weight`"
            )
        if self.losses is not None and self.temperature is not None:
            raise ValueError(
                "`temperature` is for soft targets without `losses`; write it beside the name of "
                "a loss in the list"
            )
        if not word:
            self.distiller_options()
        return self

    def distiller_options(self) -> dict[str, Any]:
        """Returns what `Distiller` takes, new losses at every call."""
        # Here, since it loads TensorFlow, which most recipes need not be read with.
        from kdtflite.pipeline.losses import make_losses

        if isinstance(self.losses, str):
            return {"losses": "auto"}
        soft_targets: dict[str, Any] = {"name": "soft_targets"}
        if self.temperature is not None:
            soft_targets["temperature"] = self.temperature
        losses = [soft_targets] if self.losses is None else self.losses
        try:
            return make_losses(losses, self.hard_label_weight)
        except ConfigurationError as error:
            raise ValueError(str(error).rstrip(".")) from error


class QuantizationRecipe(DistillationRecipe):
    """Quantization-aware training by the teacher, going on from the distilled student."""

    losses: Any = Field(
        None,
        description="distillation (the default): what that stage was trained with; or a list",
    )

    _without: ClassVar[str] = "distillation"


class MetadataRecipe(_Strict):
    """What the files say of themselves beside the labels, the normalisation and the recipe."""

    description: str = Field("", description="what the models do; by default the recipe's own")
    author: str = Field("", description="who made them")
    license: str = Field("", description="their licence, best as an SPDX identifier")


class ConversionRecipe(_Strict):
    """The file."""

    target: Literal["int8"] = Field("int8", description="what is promised and proven")
    io_dtype: Literal["int8", "uint8"] = Field("int8", description="dtype of inputs and outputs")
    representative_samples: int = Field(500, ge=1, description="training samples to calibrate on")
    metadata: MetadataRecipe = MetadataRecipe()


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
    quantization: QuantizationRecipe = Field(
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
        own = set(DistillationRecipe.model_fields) - set(TrainingRecipe.model_fields)
        shared = self.distillation.model_dump(exclude=own)
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
