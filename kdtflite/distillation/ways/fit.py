"""How every stage of a job is compiled and fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tf_keras as keras

from kdtflite.distillation.checks.finite import StopUnlessFinite
from kdtflite.distillation.training import BaseDistiller
from kdtflite.errors import ConfigurationError

__all__ = ["Fit"]


@dataclass(frozen=True)
class Fit:
    """The arguments of `compile` and `fit` for each student of a longer job.

    Whatever keeps state (an optimizer, callbacks, metrics) is given by name or made by a function,
    so that no stage continues from the state of another.

    Args:
        epochs: Epochs of each stage.
        optimizer: A name, or a function that makes an optimizer.
        loss: The hard-label loss; by default sparse categorical cross-entropy on logits. None to
            learn from the teacher alone.
        metrics: Names of metrics, or a function that makes a list of them.
        batch_size: Samples per batch, for arrays.
        validation_data: As `fit` takes it.
        callbacks: A function that makes a list of callbacks; by default none.
        seed: Seeds the shuffling, dropout and mixing of each stage, the stage's number added, so
            that a stopped and resumed job ends as it would have. None leaves TensorFlow's random
            numbers as they are.
        verbose: As `fit` takes it.

    Raises:
        ConfigurationError: No epochs, or an optimizer or callbacks that serve one training only.

    Example:
        >>> import tf_keras as keras
        >>> fit = Fit(epochs=20, optimizer=lambda: keras.optimizers.Adam(1e-3), seed=0)
    """

    epochs: int = 10
    optimizer: str | Callable[[], Any] = "adam"
    loss: Any = field(
        default_factory=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    metrics: Sequence[str] | Callable[[], Sequence[Any]] = ("accuracy",)
    batch_size: int = 32
    validation_data: Any = None
    callbacks: Callable[[], Sequence[Any]] = list
    seed: int | None = None
    verbose: Any = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigurationError(
                f"Expected one epoch or more, of batches of one sample or more. Received: "
                f"epochs={self.epochs}, batch_size={self.batch_size}."
            )
        if not isinstance(self.optimizer, str) and not callable(self.optimizer):
            raise ConfigurationError(
                "An optimizer keeps the state of one training, so each stage needs its own. "
                f"Expected a name or a function that makes one. Received: {self.optimizer!r}. "
                "Pass for example optimizer=lambda: keras.optimizers.Adam(1e-3)."
            )
        if not callable(self.callbacks):
            raise ConfigurationError(
                "Callbacks keep the state of one training. Expected a function that makes a "
                f"list of them. Received: {self.callbacks!r}. Pass callbacks=lambda: [...]."
            )

    def compile(self, model: keras.Model, **options: Any) -> None:
        """Compiles `model` with its own optimizer and metrics."""
        optimizer = self.optimizer if isinstance(self.optimizer, str) else self.optimizer()
        metrics = self.metrics() if callable(self.metrics) else self.metrics
        model.compile(optimizer, self.loss, list(metrics), **options)

    def run(self, model: keras.Model, train: Any, *, stage: int = 0) -> dict[str, list[float]]:
        """Fits a compiled model and returns its history, values by name.

        Args:
            model: A Distiller, or any Keras model.
            train: A tf.data.Dataset of batches, a pair (x, y), a triple with sample weights, or
                an object with attributes x and y.
            stage: The number of the stage, added to the seed.
        """
        if self.seed is not None:
            keras.utils.set_random_seed(self.seed + stage)
        watch = [] if isinstance(model, BaseDistiller) else [StopUnlessFinite()]
        history = model.fit(
            **_build_arguments(train, self.batch_size),
            epochs=self.epochs,
            validation_data=self.validation_data,
            callbacks=[*watch, *self.callbacks()],
            verbose=self.verbose,
        )
        return {name: [float(v) for v in values] for name, values in history.history.items()}


def _build_arguments(train: Any, batch_size: int) -> dict[str, Any]:
    if isinstance(train, tuple | list):
        names = ("x", "y", "sample_weight")
        return {**dict(zip(names, train, strict=False)), "batch_size": batch_size}
    if hasattr(train, "x") and hasattr(train, "y"):
        return {"x": train.x, "y": train.y, "batch_size": batch_size}
    return {"x": train}
