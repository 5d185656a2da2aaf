"""Data sets of which only some samples have a label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kdtflite.data.splits import Dataset, Split, stratified_split
from kdtflite.errors import DataError
from kdtflite.progress import say

__all__ = ["hide_labels"]


def hide_labels(dataset: Dataset, labeled: float, *, seed: int) -> Dataset:
    """Returns a data set with labels for a share of its training samples, class by class.

    The others become unlabeled samples, beside those that it has already. Validation and test
    samples keep their labels.

    Args:
        dataset: The data set.
        labeled: Share of the training samples that keep their label, above 0 and below 1.
        seed: Chooses them.

    Raises:
        ConfigurationError: The share leaves no sample with a label, or none without.
        DataError: A class keeps no label.

    Example:
        >>> import kdtflite
        >>> from kdtflite.data.unlabeled import hide_labels
        >>> few = hide_labels(kdtflite.data.load("digits"), 0.1, seed=0)
        >>> len(few.train), few.unlabeled.shape
        (115, (1031, 8, 8, 1))
    """
    train = dataset.train
    rest, kept = stratified_split(train.y, float(labeled), seed=seed)
    counts = np.bincount(train.y[kept], minlength=dataset.classes)
    if not counts.all():
        raise DataError(
            "Expected a labeled sample of every class. Received: none of "
            f"{dataset.class_names[int(counts.argmin())]!r} among {len(kept)} of {len(train)} "
            f"training samples (a share of {labeled}). Keep more labels."
        )
    say(
        f"{len(kept):,} of {len(train):,} training samples keep their label, "
        f"{counts.min()} to {counts.max()} per class."
    )
    hidden = train.x[rest]
    if dataset.unlabeled is not None:
        hidden = np.concatenate([hidden, dataset.unlabeled])
    return replace(dataset, train=Split(train.x[kept], train.y[kept]), unlabeled=hidden)
