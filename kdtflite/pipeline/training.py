"""Training that can be killed at any moment and gives the same weights in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.data.augment import Augmentation
from kdtflite.data.batches import steps_an_epoch, training_batches
from kdtflite.data.splits import Dataset
from kdtflite.files import write_json
from kdtflite.pipeline.recipe import TrainingRecipe
from kdtflite.progress import say, track

__all__ = ["adam", "fit_resumably"]


def adam(recipe: TrainingRecipe, steps: int) -> keras.optimizers.Optimizer:
    """Returns Adam with linear warm-up and cosine decay to 1 % over the whole training."""
    warmup = min(int(recipe.warmup_epochs * steps), recipe.epochs * steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.01 * recipe.learning_rate if warmup else recipe.learning_rate,
        decay_steps=recipe.epochs * steps - warmup,
        alpha=0.01,
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return keras.optimizers.Adam(schedule)


def fit_resumably(
    model: keras.Model,
    trained: keras.Model,
    dataset: Dataset,
    recipe: TrainingRecipe,
    *,
    seed: int,
    folder: Path,
    title: str,
) -> dict[str, Any]:
    """Fits `model` epoch by epoch with a checkpoint each, going on from the last one.

    Everything an epoch depends on is in the checkpoint (weights, optimizer) or a function of the
    seed and the epoch (order, augmentation, learning rate): stopped and started again, training
    ends with the weights it would have had.

    Args:
        model: Compiled; what is fitted (a Distiller, or the trained model itself).
        trained: The model whose weights are trained and kept.
        dataset: Training and validation samples.
        recipe: Epochs, batch size and augmentation.
        seed: Seed of order and augmentation.
        folder: Where checkpoints and history.json are kept.
        title: Name of the training for lines of progress.

    Returns:
        "epochs", the numbers of the epochs from 1, and "history", values by name.
    """
    steps = steps_an_epoch(dataset.train, recipe.batch_size)
    done = tf.Variable(0, dtype=tf.int64, trainable=False, name="epochs_done")
    model.optimizer.build(trained.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=trained, optimizer=model.optimizer, epochs_done=done)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "checkpoint"), max_to_keep=2)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint).expect_partial()
        say(f"{title}: going on after epoch {int(done)} of {recipe.epochs}")
    rows = _read_history(folder / "history.json")[: int(done)]
    augmentation = Augmentation(**recipe.augmentation.model_dump())
    if int(done) < recipe.epochs:
        batches = training_batches(
            dataset.train,
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            first_epoch=int(done),
            seed=seed,
            augmentation=augmentation if augmentation.active else None,
        )

        def keep(epoch: int, logs: dict[str, float]) -> None:
            rows.append({"epoch": epoch + 1, **logs})
            write_json(folder / "history.json", rows, overwrite=True)
            done.assign(epoch + 1)
            manager.save()

        model.fit(
            batches,
            steps_per_epoch=steps,
            initial_epoch=int(done),
            epochs=recipe.epochs,
            validation_data=(dataset.validation.x, dataset.validation.y),
            validation_batch_size=500,
            callbacks=[_EachEpoch(title, recipe.epochs, keep)],
            verbose=0,
        )
    # A model without regularization has no such term to show.
    names = [
        name
        for name in rows[0]
        if name != "epoch"
        and not (name == "regularization_loss" and not any(row[name] for row in rows))
    ]
    return {
        "epochs": [row["epoch"] for row in rows],
        "history": {name: [row[name] for row in rows] for name in names},
    }


def _read_history(path: Path) -> list[dict[str, float]]:
    return json.loads(path.read_text()) if path.is_file() else []


class _EachEpoch(keras.callbacks.Callback):
    """Shows the steps of an epoch, says how it went and hands its values on."""

    def __init__(
        self, title: str, epochs: int, keep: Callable[[int, dict[str, float]], None]
    ) -> None:
        super().__init__()
        self.title = title
        self.epochs = epochs
        self.keep = keep
        self.started = time.monotonic()
        self.first: int | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        if self.first is None:
            self.first, self.started = epoch, time.monotonic()
        description = f"{self.title}: epoch {epoch + 1} of {self.epochs}"
        # A step is far below a second: its bar is drawn by the terminal's refresh, not by it.
        self.steps = track(range(self.params["steps"]), description, bar_only=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del batch, logs
        next(self.steps, None)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        next(self.steps, None)  # past its end: takes the bar away
        values = {name: float(value) for name, value in (logs or {}).items()}
        optimizer = self.model.optimizer
        values["learning_rate"] = float(optimizer.learning_rate)
        self.keep(epoch, values)
        spent = time.monotonic() - self.started
        left = spent / (epoch + 1 - (self.first or 0)) * (self.epochs - epoch - 1)
        say(
            f"{self.title}: epoch {epoch + 1} of {self.epochs}, loss {values['loss']:.4f}, "
            f"validation accuracy {values.get('val_accuracy', float('nan')):.4f}"
            + (f", about {left:.0f} s left" if left >= 1 else "")
        )
