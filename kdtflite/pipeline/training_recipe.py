"""How a recipe's models are trained: the keys of every training, and those with a teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdtflite.errors import ConfigurationError
from kdtflite.pipeline.bounds import MOST_PIXELS, Real, Whole

__all__ = [
    "AugmentationRecipe",
    "DistillationRecipe",
    "EarlyStoppingRecipe",
    "MixingRecipe",
    "QuantizationRecipe",
    "Strict",
    "TrainingRecipe",
]


class Strict(BaseModel):
    """A part of a recipe; a key that it does not have is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AugmentationRecipe(Strict):
    """How training images are transformed at random, each by numbers of its own."""

    shift: Real = Field(0.0, ge=0, le=MOST_PIXELS, description="largest shift, pixels")
    crop: Whole = Field(
        0,
        ge=0,
        le=MOST_PIXELS,
        description="pixels of padding around an image, out of which a part of its own size is "
        "cut: a shift by whole pixels, which blurs nothing",
    )
    rotation: Real = Field(0.0, ge=0, le=180, description="largest rotation, degrees")
    zoom: Real = Field(0.0, ge=0, lt=1, description="largest change of size, fraction")
    flip: bool = Field(False, description="mirror every second image")

    @model_validator(mode="after")
    def _one_way_to_move(self) -> AugmentationRecipe:
        if self.shift and self.crop:
            raise ValueError("give either `shift` or `crop`: both move the image")
        return self

    @property
    def active(self) -> bool:
        """Whether any image is changed."""
        return self != AugmentationRecipe()


class MixingRecipe(Strict):
    """Training samples that are mixtures of two, the same for student and teacher."""

    mixup: Real | None = Field(None, gt=0, le=1000, description="alpha of MixUp; the paper has 0.2")
    cutmix: Real | None = Field(None, gt=0, le=1000, description="alpha of CutMix; the paper has 1")

    @model_validator(mode="after")
    def _one_way(self) -> MixingRecipe:
        if (self.mixup is None) == (self.cutmix is None):
            raise ValueError("give either `mixup` or `cutmix`, with its alpha")
        return self


class EarlyStoppingRecipe(Strict):
    """Ends a training that no longer improves, and keeps the weights of its best epoch."""

    patience: Whole = Field(ge=1, description="epochs without a better validation accuracy")


class TrainingRecipe(Strict):
    """One training; by default Adam with warm-up and cosine decay."""

    epochs: Whole = Field(ge=1, description="passes over the training samples")
    batch_size: Whole = Field(128, ge=1, description="samples per step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam",
        description="adam, adamw (Adam with `weight_decay`), or sgd with Nesterov momentum of 0.9",
    )
    learning_rate: Real = Field(gt=0, le=1000, description="peak of the learning rate")
    schedule: Literal["cosine", "one_cycle", "constant"] = Field(
        "cosine",
        description="the learning rate after its linear rise: cosine falls to 1 % of the peak, "
        "one_cycle to nearly 0, constant stays",
    )
    warmup_epochs: Real | None = Field(
        None,
        ge=0,
        le=10_000_000,
        description="epochs of linear rise to the peak; 1 by default, with one_cycle three tenths "
        "of the epochs",
    )
    augmentation: AugmentationRecipe = AugmentationRecipe()
    mixing: MixingRecipe | None = Field(
        None, description="mix samples: {mixup: alpha} or {cutmix: alpha}"
    )
    weight_decay: Real = Field(
        0.0,
        ge=0,
        le=1000,
        description="decay of the kernels; biases and norms have none. Decoupled with adam and "
        "adamw; with sgd part of the gradient (L2)",
    )
    label_smoothing: Real = Field(
        0.0, ge=0, lt=1, description="share of the hard labels spread over all classes"
    )
    clip_norm: Real | None = Field(None, gt=0, description="largest norm of all gradients together")
    ema: Real | None = Field(
        None, gt=0, lt=1, description="momentum of a moving average of the weights, which is kept"
    )
    batch_norm_batches: Whole = Field(
        0,
        ge=0,
        description="training batches from which the statistics of batch normalization are "
        "estimated anew at the end, for the weights that are kept; 0 keeps the moving averages",
    )
    early_stopping: EarlyStoppingRecipe | None = Field(
        None, description="end when the validation accuracy stops improving: {patience: epochs}"
    )

    @model_validator(mode="after")
    def _decay_of_adamw(self) -> TrainingRecipe:
        if self.optimizer == "adamw" and not self.weight_decay:
            raise ValueError("`optimizer: adamw` needs a `weight_decay`, for example 0.01")
        return self

    @property
    def rise(self) -> float:
        """Epochs in which the learning rate rises."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return 0.3 * self.epochs if self.schedule == "one_cycle" else 1.0


class DistillationRecipe(TrainingRecipe):
    """Training with the teacher: by losses chosen on the validation samples, or named here."""

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
    cached_views: Whole | None = Field(
        None,
        ge=1,
        description="augmented views of each training sample for which the teacher's outputs are "
        "computed once, 8 or more; by default the teacher runs in every step, on new views",
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
                f"`losses: {self.losses}` includes temperature and weights; leave out "
                "`losses`, or `temperature` and `hard_label_weight`"
            )
        if self.losses is not None and self.temperature is not None:
            raise ValueError(
                "`temperature` is for soft targets without `losses`; write it beside the name of "
                "a loss in the list"
            )
        if self.cached_views is not None and self.mixing is not None:
            raise ValueError(
                "`cached_views` are outputs for samples as they are, not for mixed ones; leave out "
                "`cached_views` or `mixing`"
            )
        if (self.cached_views or 1) > 1 and not self.augmentation.active:
            raise ValueError(
                f"without `augmentation` the {self.cached_views} `cached_views` would all be the "
                "same; add it, or say `cached_views: 1`"
            )
        if not word:
            self.distiller_options()
        return self

    def distiller_options(self) -> dict[str, Any]:
        """Returns what `Distiller` takes, new losses at every call."""
        # Here: it imports TensorFlow, which most recipes do not need to be read.
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
    """Quantization-aware training with the teacher, starting from the distilled student."""

    losses: Any = Field(
        None,
        description="distillation (the default): the losses of that stage; or a list",
    )

    _without: ClassVar[str] = "distillation"
