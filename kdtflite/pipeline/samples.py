"""What a training sees: its samples, with their labels or a teacher's stored outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.data.augment import Augmentation
from kdtflite.data.batches import steps_per_epoch, training_batches
from kdtflite.data.splits import Dataset
from kdtflite.distillation.teachers.cache.teacher import TeacherCache
from kdtflite.distillation.ways.semi_supervised import UNLABELED
from kdtflite.pipeline.recipe import TrainingRecipe

__all__ = ["TrainingSamples", "make_augmentation", "make_labels"]


@dataclass(frozen=True, eq=False)
class TrainingSamples:
    """The samples of a training.

    Attributes:
        x: Samples, shape (samples, ...).
        y: Class of each, shape (samples,), int64; `UNLABELED` where it is not known.
        classes: Number of classes.
        passes: Passes over the samples that make an epoch.
        cache: The teacher's outputs for views of these samples; None where it runs in every step.
    """

    x: np.ndarray
    y: np.ndarray
    classes: int
    passes: int = 1
    cache: TeacherCache | None = None

    @classmethod
    def take_labeled(cls, dataset: Dataset) -> TrainingSamples:
        """Returns the samples that have a label.

        Where others have none, an epoch passes over the labeled ones as often as makes about as
        many steps as all samples would: only the teacher should make the difference to a training
        on all of them.
        """
        train = dataset.train
        others = 0 if dataset.unlabeled is None else len(dataset.unlabeled)
        passes = max(1, round((len(train) + others) / len(train)))
        return cls(train.x, train.y, dataset.classes, passes)

    @classmethod
    def take_all(cls, dataset: Dataset) -> TrainingSamples:
        """Returns all training samples, for a training with a teacher."""
        train, others = dataset.train, dataset.unlabeled
        if others is None:
            return cls(train.x, train.y, dataset.classes)
        y = np.concatenate([train.y, np.full(len(others), UNLABELED)])
        return cls(np.concatenate([train.x, others]), y, dataset.classes)

    def count_steps(self, batch_size: int) -> int:
        """Returns the number of steps of an epoch."""
        return steps_per_epoch(self, batch_size, passes=self.passes)

    def make_batches(
        self, recipe: TrainingRecipe, *, seed: int, epochs: int, first_epoch: int = 0
    ) -> tf.data.Dataset:
        """Returns the recipe's training batches of epochs `first_epoch` to `epochs`."""
        options: dict[str, Any] = {
            "batch_size": recipe.batch_size,
            "epochs": epochs,
            "first_epoch": first_epoch,
            "seed": seed,
        }
        if self.cache is not None:
            batches = self.cache.batches((self.x, self.y), **options)
        else:
            augmentation = make_augmentation(recipe)
            batches = training_batches(
                self, augmentation=augmentation, passes=self.passes, **options
            )
        if not recipe.label_smoothing:
            return batches
        return batches.map(lambda x, y: (x, make_labels(y, self.classes, recipe)))


def make_augmentation(recipe: TrainingRecipe) -> Augmentation | None:
    """Returns the recipe's augmentation, or None for images as they are."""
    return Augmentation(**recipe.augmentation.model_dump()) if recipe.augmentation.active else None


def make_labels(y: Any, classes: int, recipe: TrainingRecipe) -> Any:
    """Returns labels as the recipe's loss takes them: one-hot where Keras smooths them.

    A missing label becomes a row of `UNLABELED`.
    """
    if not recipe.label_smoothing:
        return y
    known = tf.convert_to_tensor(y)[:, tf.newaxis] != UNLABELED
    return tf.where(known, tf.one_hot(y, classes), float(UNLABELED))
