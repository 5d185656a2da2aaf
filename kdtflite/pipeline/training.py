"""Training that can be killed at any moment and still ends with the same weights."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.data.splits import Dataset
from kdtflite.distillation.checks.finite import StopUnlessFinite
from kdtflite.distillation.distiller import Distiller
from kdtflite.distillation.step import CachedBatch
from kdtflite.errors import DataError, TrainingError, to_line
from kdtflite.files import write_json
from kdtflite.models.batch_norm import find_norms, reestimate_statistics
from kdtflite.pipeline.best import BestEpoch, use_averages
from kdtflite.pipeline.recipe import TrainingRecipe
from kdtflite.pipeline.samples import TrainingSamples, make_labels
from kdtflite.pipeline.workers import ALONE, Workers
from kdtflite.progress import say, track

__all__ = ["fit_resumably", "make_cross_entropy"]


def make_cross_entropy(recipe: TrainingRecipe) -> keras.losses.Loss:
    """Returns the loss on hard labels as `make_labels` returns them."""
    if recipe.label_smoothing:
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=recipe.label_smoothing
        )
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit_resumably(
    model: keras.Model,
    trained: keras.Model,
    dataset: Dataset,
    recipe: TrainingRecipe,
    *,
    seed: int,
    folder: Path,
    title: str,
    samples: TrainingSamples | None = None,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """Fits `model`, saves a checkpoint after every epoch, and resumes from the last one.

    Everything an epoch depends on is either in the checkpoint (weights, optimizer with its
    averages, the losses' variables, the best epoch, the history) or a function of the seed and the
    epoch (order, augmentation, mixing, the losses' random numbers, learning rate). So a training
    that is stopped and started again ends with the weights it would have had anyway.

    With a moving average of the weights, the averages are what is validated and saved.

    Args:
        model: The compiled model to fit: a Distiller, or the trained model itself.
        trained: The model whose weights are trained and saved.
        dataset: Its validation samples are validated on.
        recipe: The recipe of the training.
        seed: Seed of order and augmentation.
        folder: Where checkpoints and, to be read by others, history.json are saved.
        title: Name of the training in lines of progress.
        samples: What it trains on; by default the data set's labeled training samples.
        workers: The processes that train together; `model` was made in their scope.

    Returns:
        "epochs", the numbers of the epochs from 1, and "history", values by name; with early
        stopping "kept_epoch", the best one.

    Raises:
        DataError: The last checkpoint is damaged.
        TrainingError: A loss, weight or gradient is no number.
    """
    samples = TrainingSamples.take_labeled(dataset) if samples is None else samples
    steps = samples.count_steps(recipe.batch_size)
    done = tf.Variable(0, dtype=tf.int64, trainable=False, name="epochs_done")
    distiller = isinstance(model, Distiller)
    variables = model.trained_variables if distiller else trained.trainable_variables
    model.optimizer.build(variables)
    best = _make_best_epoch(trained, recipe)
    history = _History()
    checkpoint = tf.train.Checkpoint(
        model=trained,
        optimizer=model.optimizer,
        epochs_done=done,
        losses=model.loss_variables if distiller else [],
        history=history,
        **({} if best is None else {"best": best}),
    )
    if _restore(checkpoint, folder / "checkpoint"):
        say(f"{title}: resuming after epoch {int(done.numpy())} of {recipe.epochs}")
    kept = str(workers.choose_folder(folder) / "checkpoint")
    manager = tf.train.CheckpointManager(checkpoint, kept, max_to_keep=2)
    begun = int(done.numpy())
    rows = history.rows
    if begun < recipe.epochs and not (best is not None and best.should_stop(begun)):

        def keep(epoch: int, logs: dict[str, float]) -> None:
            rows.append({"epoch": epoch + 1, **logs})
            if workers.is_chief:
                write_json(folder / "history.json", rows, overwrite=True)
            done.assign(epoch + 1)
            if best is not None:
                with use_averages(model.optimizer, trained.trainable_variables):
                    best.update(epoch + 1, logs["val_accuracy"])
                model.stop_training = best.should_stop(epoch + 1)
            manager.save()

        validation = dataset.validation
        batches = samples.make_batches(recipe, seed=seed, epochs=recipe.epochs, first_epoch=begun)
        with workers.synchronize(trained), _name_stage(title):
            model.fit(
                workers.shard(batches),
                steps_per_epoch=steps,
                initial_epoch=begun,
                epochs=recipe.epochs,
                validation_data=(validation.x, make_labels(validation.y, dataset.classes, recipe)),
                validation_batch_size=500,
                callbacks=[
                    *([] if distiller else [StopUnlessFinite()]),  # a Distiller has its own
                    *([_SeedEachEpoch(seed)] if distiller and model.uses_randomness else []),
                    _ValidateAverages(trained.trainable_variables),
                    _ReportEachEpoch(title, recipe.epochs, keep),
                ],
                verbose=0,
            )
    # `fit` has done this, unless it was killed between its last epoch and its end.
    model.optimizer.finalize_variable_values(trained.trainable_variables)
    if best is not None:
        best.restore()
        say(f"{title}: keeping the weights of epoch {best.number}, the best of {done.numpy()}")
    if recipe.batch_norm_batches and find_norms(trained):
        # Those of the epochs that would follow: a function of the seed, too.
        after = recipe.epochs + math.ceil(recipe.batch_norm_batches / steps)
        batches = samples.make_batches(recipe, seed=seed, epochs=after, first_epoch=recipe.epochs)
        inputs = workers.shard(
            batches.map(lambda x, y: x.inputs if isinstance(x, CachedBatch) else x)
        )
        with workers.synchronize(trained):
            reestimate_statistics(trained, inputs, recipe.batch_norm_batches)
        say(
            f"{title}: statistics of batch normalization estimated anew from "
            f"{recipe.batch_norm_batches} batches"
        )
    # Without regularization there is no such term to show.
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


@contextlib.contextmanager
def _name_stage(title: str) -> Iterator[None]:
    """Puts the name of the training before the message of a TrainingError."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"{title}: {error}") from None


def _make_best_epoch(trained: keras.Model, recipe: TrainingRecipe) -> BestEpoch | None:
    if recipe.early_stopping is None:
        return None
    return BestEpoch(trained.weights, recipe.early_stopping.patience)


class _History(tf.train.experimental.PythonState):
    """One row per epoch, saved with the weights in a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def serialize(self) -> str:
        """Returns the rows as a checkpoint holds them."""
        return json.dumps(self.rows)

    def deserialize(self, text: str) -> None:
        """Takes the rows of a checkpoint."""
        self.rows[:] = json.loads(text)


def _restore(checkpoint: tf.train.Checkpoint, folder: Path) -> bool:
    """Restores the last checkpoint in a folder; returns whether there is one."""
    try:
        latest = tf.train.latest_checkpoint(str(folder))
        if latest:
            checkpoint.restore(latest).expect_partial()
    except (tf.errors.OpError, ValueError) as error:
        raise DataError(
            f"A checkpoint in {folder} is damaged ({to_line(error)[:200]}). Remove this folder and "
            "start again: this training then begins anew, and nothing else is lost."
        ) from error
    return bool(latest)


class _SeedEachEpoch(keras.callbacks.Callback):
    """Makes a training step's random numbers a function of the seed and the epoch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        tf.random.set_seed(self.seed * 1_000_003 + epoch)
        # A traced step keeps its own random state, whatever the seed.
        self.model.train_function = None
        self.model.make_train_function()


class _ValidateAverages(keras.callbacks.Callback):
    """Validates the moving averages of the weights, if there are any, as they are what is saved."""

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        super().__init__()
        self.variables = variables
        self.lent = contextlib.ExitStack()

    def on_test_begin(self, logs: Any = None) -> None:
        del logs
        self.lent.enter_context(use_averages(self.model.optimizer, self.variables))

    def on_test_end(self, logs: Any = None) -> None:
        del logs
        self.lent.close()


class _ReportEachEpoch(keras.callbacks.Callback):
    """Shows the steps of an epoch, reports its results and passes them on."""

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
        # A step takes far less than a second: the terminal's refresh draws the bar.
        self.steps = track(range(self.params["steps"]), description, bar_only=True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del batch, logs
        next(self.steps, None)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        next(self.steps, None)  # past the end: removes the bar
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
