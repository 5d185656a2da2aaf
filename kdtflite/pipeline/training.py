"""Training that can be killed at any moment and gives the same weights in the end."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.data.augment import Augmentation
from kdtflite.data.batches import steps_an_epoch, training_batches
from kdtflite.data.splits import Dataset
from kdtflite.distillation.distiller import Distiller
from kdtflite.files import write_json
from kdtflite.pipeline.best import Best, averaged
from kdtflite.pipeline.recipe import TrainingRecipe
from kdtflite.pipeline.workers import ALONE, Workers
from kdtflite.progress import say, track

__all__ = ["adam", "batches_of", "cross_entropy", "fit_resumably", "labels_of"]


def adam(
    recipe: TrainingRecipe, steps: int, variables: Sequence[tf.Variable]
) -> keras.optimizers.Optimizer:
    """Returns Adam with linear warm-up and cosine decay to 1 % over the whole training.

    Args:
        recipe: What it is to do.
        steps: Steps an epoch.
        variables: What it will train; biases and normalizations among it do not decay.
    """
    warmup = min(int(recipe.warmup_epochs * steps), recipe.epochs * steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.01 * recipe.learning_rate if warmup else recipe.learning_rate,
        decay_steps=recipe.epochs * steps - warmup,
        alpha=0.01,
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.Adam(
        schedule,
        weight_decay=recipe.weight_decay or None,
        global_clipnorm=recipe.clip_norm,
        use_ema=recipe.ema is not None,
        ema_momentum=recipe.ema or 0.99,
    )
    vectors = [variable for variable in variables if variable.shape.rank < 2]
    optimizer.exclude_from_weight_decay(var_list=vectors)
    return optimizer


def cross_entropy(recipe: TrainingRecipe) -> keras.losses.Loss:
    """Returns the loss on the hard labels, as `labels_of` gives them."""
    if recipe.label_smoothing:
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        )
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def labels_of(y: Any, dataset: Dataset, recipe: TrainingRecipe) -> Any:
    """Returns labels as the recipe's loss takes them: one-hot for smoothing, which Keras asks."""
    return tf.one_hot(y, dataset.classes) if recipe.label_smoothing else y


def batches_of(
    dataset: Dataset, recipe: TrainingRecipe, *, seed: int, epochs: int, first_epoch: int = 0
) -> tf.data.Dataset:
    """Returns the training batches of epochs `first_epoch` to `epochs`, as the recipe has them."""
    augmentation = Augmentation(**recipe.augmentation.model_dump())
    batches = training_batches(
        dataset.train,
        batch_size=recipe.batch_size,
        epochs=epochs,
        first_epoch=first_epoch,
        seed=seed,
        augmentation=augmentation if augmentation.active else None,
    )
    if not recipe.label_smoothing:
        return batches
    return batches.map(lambda x, y: (x, labels_of(y, dataset, recipe)))


def fit_resumably(
    model: keras.Model,
    trained: keras.Model,
    dataset: Dataset,
    recipe: TrainingRecipe,
    *,
    seed: int,
    folder: Path,
    title: str,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Fits `model` epoch by epoch with a checkpoint each, going on from the last one.

    Everything an epoch depends on is in the checkpoint (weights, optimizer with its averages, what
    the losses train or remember, the best epoch) or a function of the seed and the epoch (order,
    augmentation, mixing, what losses draw, learning rate): stopped and started again, training ends
    with the weights it would have had.

    With a moving average of the weights, it is the averages that are validated and kept.

    Args:
        model: Compiled; what is fitted (a Distiller, or the trained model itself).
        trained: The model whose weights are trained and kept.
        dataset: Training and validation samples.
        recipe: Epochs, batch size, augmentation and what else it asks for.
        seed: Seed of order and augmentation.
        folder: Where checkpoints and history.json are kept.
        title: Name of the training for lines of progress.
        workers: Who trains together; `model` was made in their scope.

    Returns:
        "epochs", the numbers of the epochs from 1, and "history", values by name; with early
        stopping "kept_epoch", the best one.
    """
    steps = steps_an_epoch(dataset.train, recipe.batch_size)
    done = tf.Variable(0, dtype=tf.int64, trainable=False, name="epochs_done")
    distiller = isinstance(model, Distiller)
    variables = model.trained_variables if distiller else trained.trainable_variables
    model.optimizer.build(variables)
    best = _best(trained, recipe)
    checkpoint = tf.train.Checkpoint(
        model=trained,
        optimizer=model.optimizer,
        epochs_done=done,
        losses=model.loss_variables if distiller else [],
        **({} if best is None else {"best": best}),
    )
    kept = str(workers.own(folder) / "checkpoint")
    manager = tf.train.CheckpointManager(checkpoint, kept, max_to_keep=2)
    latest = tf.train.latest_checkpoint(str(folder / "checkpoint"))
    if latest:
        checkpoint.restore(latest).expect_partial()
        say(f"{title}: going on after epoch {int(done.numpy())} of {recipe.epochs}")
    begun = int(done.numpy())
    rows = _read_history(folder / "history.json")[:begun]
    if begun < recipe.epochs and not (best is not None and best.given_up(begun)):

        def keep(epoch: int, logs: dict[str, float]) -> None:
            rows.append({"epoch": epoch + 1, **logs})
            if workers.chief:
                write_json(folder / "history.json", rows, overwrite=True)
            done.assign(epoch + 1)
            if best is not None:
                with averaged(model.optimizer, trained.trainable_variables):
                    best.see(epoch + 1, logs["val_accuracy"])
                model.stop_training = best.given_up(epoch + 1)
            manager.save()

        validation = dataset.validation
        batches = batches_of(dataset, recipe, seed=seed, epochs=recipe.epochs, first_epoch=begun)
        with workers.synchronized(trained):
            model.fit(
                workers.shared(batches),
                steps_per_epoch=steps,
                initial_epoch=begun,
                epochs=recipe.epochs,
                validation_data=(validation.x, labels_of(validation.y, dataset, recipe)),
                validation_batch_size=500,
                callbacks=[
                    *([_EachEpochsDraws(seed)] if distiller and model.draws else []),
                    _ValidateAverages(trained.trainable_variables),
                    _EachEpoch(title, recipe.epochs, keep),
                ],
                verbose=0,
            )
    # By fit already, but not where it was killed between its last epoch and its end.
    model.optimizer.finalize_variable_values(trained.trainable_variables)
    if best is not None:
        best.restore()
        say(f"{title}: the weights of epoch {best.number} are kept, the best of {done.numpy()}")
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
        **({} if best is None else {"kept_epoch": best.number}),
    }


def _best(trained: keras.Model, recipe: TrainingRecipe) -> Best | None:
    if recipe.early_stopping is None:
        return None
    return Best(trained.weights, recipe.early_stopping.patience)


def _read_history(path: Path) -> list[dict[str, float]]:
    return json.loads(path.read_text()) if path.is_file() else []


class _EachEpochsDraws(keras.callbacks.Callback):
    """Makes what a training step draws a function of the seed and the epoch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        tf.random.set_seed(self.seed * 1_000_003 + epoch)
        # A traced step goes on with its own random numbers, whatever the seed.
        self.model.train_function = None
        self.model.make_train_function()


class _ValidateAverages(keras.callbacks.Callback):
    """Validates the moving averages of the weights where there are such: they are what is kept."""

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        super().__init__()
        self.variables = variables
        self.lent = contextlib.ExitStack()

    def on_test_begin(self, logs: Any = None) -> None:
        del logs
        self.lent.enter_context(averaged(self.model.optimizer, self.variables))

    def on_test_end(self, logs: Any = None) -> None:
        del logs
        self.lent.close()


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
        values["learning_rate"] = float(optimizer.learning_rate.numpy())
        self.keep(epoch, values)
        spent = time.monotonic() - self.started
        left = spent / (epoch + 1 - (self.first or 0)) * (self.epochs - epoch - 1)
        say(
            f"{self.title}: epoch {epoch + 1} of {self.epochs}, loss {values['loss']:.4f}, "
            f"validation accuracy {values.get('val_accuracy', float('nan')):.4f}"
            + (f", about {left:.0f} s left" if left >= 1 else "")
        )
