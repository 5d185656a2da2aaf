"""What a data set is here: three splits of arrays, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtflite.data.finite import refuse_not_finite
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.progress import say

__all__ = ["Dataset", "Split", "as_labels", "stratified_split"]


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes.

    Args:
        x: Samples, shape (samples, ...), for images (samples, height, width, channels).
            Floating dtypes become float32; signed integers (token ids) become int32.
        y: Class of each sample, shape (samples,), any integer dtype; becomes int64.

    Raises:
        DataError: No samples, different lengths, NaN or infinity, bytes that nobody scaled,
            or labels that are not whole numbers from 0 up.
    """

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x), np.asarray(self.y)
        if x.dtype == np.uint8:
            raise DataError(
                "Expected samples as float32 in the range that the model is trained on. "
                "Received: bytes (uint8). Divide pixels by 255 and say so in `input_range`."
            )
        if not np.issubdtype(x.dtype, np.floating) and not np.issubdtype(x.dtype, np.signedinteger):
            raise DataError(
                f"Expected samples of a floating or signed integer dtype. Received: {x.dtype}. "
                "Convert them to numbers first."
            )
        if x.ndim < 2:
            raise DataError(
                f"Expected samples of shape (samples, ...). Received: shape {x.shape}. "
                "Add the sample axis: x[np.newaxis]."
            )
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
            raise DataError(
                f"Expected labels as integers of shape (samples,). Received: {y.dtype}, shape "
                f"{y.shape}. `kdtflite.data.as_labels` converts one-hot rows."
            )
        if len(x) != len(y):
            raise DataError(
                f"Expected one label a sample. Received: {len(x)} samples and {len(y)} labels."
            )
        if x.size == 0:
            raise DataError(
                f"Expected at least one sample. Received: samples of shape {x.shape}. "
                "Check the file, and the fractions it was split by."
            )
        if y.min() < 0:
            raise DataError(
                f"Expected labels from 0 up. Received: {y.min()} at sample {y.argmin()}. "
                "Number the classes 0, 1, 2, ... and drop unlabelled samples."
            )
        floating = np.issubdtype(x.dtype, np.floating)
        if floating:
            refuse_not_finite(x)
        object.__setattr__(self, "x", x.astype(np.float32 if floating else np.int32, copy=False))
        object.__setattr__(self, "y", y.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set in three splits that share a sample shape and their classes.

    Args:
        name: What it is called in reports.
        train: What models are fitted on.
        validation: What settings are chosen on.
        test: What results are stated on.
        class_names: Name of each class; label 0 is the first.
        input_range: Smallest and largest value that a sample can hold, for example (0.0, 1.0).
        licence: The licence of the data, as stated by its source.
        description: What it is, where it came from and how it was split.

    Raises:
        DataError: A label that names no class, a value outside `input_range`, or splits whose
            samples have different shapes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    input_range: tuple[float, float]
    licence: str = "not stated"
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names))
        low, high = (float(bound) for bound in self.input_range)
        if not low < high:
            raise DataError(
                f"Expected an input range (low, high) with low below high. "
                f"Received: {self.input_range}."
            )
        object.__setattr__(self, "input_range", (low, high))
        slack = 1e-5 * (high - low)
        for part, split in self.splits().items():
            if split.x.shape[1:] != self.sample_shape:
                raise DataError(
                    f"Expected samples of shape {self.sample_shape} in every split, as in train. "
                    f"Received: {split.x.shape[1:]} in {part}. Resize or crop them alike."
                )
            if split.y.max() >= self.classes:
                worst = int(split.y.argmax())
                raise DataError(
                    f"Labels out of range in {part}: expected 0 to {self.classes - 1}, as there "
                    f"are {self.classes} class names. Received: {split.y[worst]} at sample "
                    f"{worst}. Name every class, or correct the label."
                )
            least, most = float(split.x.min()), float(split.x.max())
            if least < low - slack or most > high + slack:
                raise DataError(
                    f"Expected values from {low:g} to {high:g} in {part}. Received: values from "
                    f"{least:g} to {most:g}. Scale the samples, or correct `input_range`."
                )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the sample axis."""
        return tuple(self.train.x.shape[1:])

    def splits(self) -> dict[str, Split]:
        """Returns the three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def to_dict(self) -> dict[str, Any]:
        """Returns a summary that JSON can hold: what the data are, not the data."""
        return {
            "name": self.name,
            "description": self.description,
            "licence": self.licence,
            "sample_shape": list(self.sample_shape),
            "dtype": str(self.train.x.dtype),
            "input_range": list(self.input_range),
            "class_names": list(self.class_names),
            "splits": {
                part: {
                    "samples": len(split),
                    "samples_per_class": np.bincount(split.y, minlength=self.classes).tolist(),
                }
                for part, split in self.splits().items()
            },
        }


def as_labels(y: npt.ArrayLike, *, quiet: bool = False) -> np.ndarray:
    """Turns labels as they are found in files into class indices.

    Integers, booleans and whole floats of shape (samples,) or (samples, 1) are taken as they
    are; rows of shape (samples, classes) must be one-hot. A conversion is said.

    Args:
        y: The labels.
        quiet: Convert without saying so.

    Returns:
        Class of each sample, shape (samples,), int64.

    Raises:
        DataError: Labels that are not whole numbers, or rows that are not one-hot.
    """
    labels = np.asarray(y)
    if not (np.issubdtype(labels.dtype, np.number) or labels.dtype == np.bool_):
        raise DataError(
            f"Expected labels as class indices 0, 1, 2, ... Received: dtype {labels.dtype}. "
            "Number the classes; their names are given apart: `class_names` in a data set or .npz "
            "file, `labels` for evaluate."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        return _from_one_hot(labels, quiet=quiet)
    if labels.ndim != 1:
        raise DataError(
            f"Expected labels of shape (samples,), or one-hot rows (samples, classes). "
            f"Received: shape {labels.shape}. kdtflite classifies whole samples."
        )
    if not np.issubdtype(labels.dtype, np.integer) and labels.dtype != np.bool_:
        wrong = np.flatnonzero(~np.isfinite(labels) | (labels != np.round(labels)))
        if wrong.size:
            raise DataError(
                f"Expected labels as class indices. Received: {labels[wrong[0]]} at sample "
                f"{wrong[0]}, and {wrong.size} labels in all that are not whole numbers. "
                "kdtflite classifies; round the labels if they are classes."
            )
        if not quiet and labels.size:
            say(f"Labels: {labels.dtype} converted to class indices.")
    return labels.astype(np.int64)


def stratified_split(
    y: np.ndarray, held_out: float | int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Parts samples in two so that every class keeps its share, the same way for the same seed.

    Args:
        y: Class of each sample, shape (samples,).
        held_out: Size of the second part: a share below 1, or a number of samples.
        seed: Chooses the samples.

    Returns:
        Indices of what stays and of what is held out, each ascending, int64. Together they are
        every sample once.

    Raises:
        ConfigurationError: One of the parts would be empty.
    """
    total = len(y)
    count = round(held_out * total) if isinstance(held_out, float) else int(held_out)
    if not 0 < count < total:
        raise ConfigurationError(
            f"Expected to hold out at least 1 and fewer than all of {total} samples. Received: "
            f"{held_out} (= {count} samples). Change the fraction or bring more samples."
        )
    # RandomState's stream is frozen by NumPy's policy, a Generator's may change with a version;
    # a test set that moves with an upgrade would be worth nothing.
    random = np.random.RandomState(seed)
    members = [random.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
    shares = np.array([len(group) for group in members]) * (count / total)
    takes = np.floor(shares).astype(int)
    # What rounding down left over goes to the classes that lost most by it.
    takes[np.argsort(takes - shares, kind="stable")[: count - takes.sum()]] += 1
    out = np.concatenate([group[:take] for group, take in zip(members, takes, strict=True)])
    keep = np.ones(total, dtype=bool)
    keep[out] = False
    return np.flatnonzero(keep), np.sort(out)


def _from_one_hot(rows: np.ndarray, *, quiet: bool) -> np.ndarray:
    right = ((rows == 0) | (rows == 1)).all(axis=1) & (rows.sum(axis=1) == 1)
    if not right.all():
        wrong = int(right.argmin())
        raise DataError(
            f"Expected class indices, or one-hot rows with a single 1. Received: shape "
            f"{rows.shape}, and row {wrong} is {rows[wrong][:10].tolist()}. Take the argmax of "
            "soft labels; samples of several classes are not supported."
        )
    if not quiet and len(rows):
        say(f"Labels: one-hot rows of {rows.shape[1]} classes converted to class indices.")
    return rows.argmax(axis=1).astype(np.int64)
