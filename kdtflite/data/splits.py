"""A data set: three splits of arrays, which are checked when they are made."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, DataError
from kdtflite.progress import say

__all__ = ["Dataset", "Split", "as_labels", "refuse_not_finite", "stratified_split"]

_MOST_CLASSES = 1 << 20  # a label beyond is an identifier or a damaged file


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes.

    Args:
        x: Samples, shape (samples, ...), for images (samples, height, width, channels).
            Floating dtypes become float32; signed integers (token ids) become int32.
        y: Class of each sample, shape (samples,), any integer dtype; becomes int64.
        class_names: Name of each class; empty if they have none. A `Dataset` sets them, so that
            `evaluate` finds the classes of a file by name.

    Raises:
        DataError: There are no samples, x and y differ in length, x holds NaN or infinity or bytes
            that are not scaled, or the labels are not whole numbers from 0 up.
    """

    x: np.ndarray
    y: np.ndarray
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        x, y = np.asarray(self.x), np.asarray(self.y)
        if x.dtype == np.uint8:
            raise DataError(
                "Expected samples as float32 in the range that the model is trained on. "
                "Received: bytes (uint8). Divide pixels by 255 and say so in `input_range`."
            )
        # By kind: NumPy counts differences of dates among the signed integers.
        if x.dtype.kind not in "fi":
            raise DataError(
                f"Expected samples of a floating or signed integer dtype. Received: {x.dtype}. "
                "Convert them to numbers first."
            )
        if x.ndim < 2:
            raise DataError(
                f"Expected samples of shape (samples, ...). Received: shape {x.shape}. "
                "Add the sample axis: x[np.newaxis]."
            )
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise DataError(
                f"Expected labels as integers of shape (samples,). Received: {y.dtype}, shape "
                f"{y.shape}. `kdtflite.data.as_labels` converts one-hot rows."
            )
        if len(x) != len(y):
            raise DataError(
                f"Expected one label per sample. Received: {len(x)} samples and {len(y)} labels."
            )
        if x.size == 0:
            raise DataError(
                f"Expected at least one sample. Received: samples of shape {x.shape}. "
                "Check the file, and the fractions it was split by."
            )
        if y.min() < 0:
            raise DataError(
                f"Expected labels from 0 up. Received: {y.min()} at sample {y.argmin()}. "
                "Number the classes 0, 1, 2, ... and drop unlabeled samples."
            )
        if y.max() >= _MOST_CLASSES:
            raise DataError(
                f"Expected labels below {_MOST_CLASSES:,}. Received: {y.max()} at sample "
                f"{y.argmax()}. Number the classes 0, 1, 2, ... without gaps."
            )
        if x.dtype.kind == "f":
            with np.errstate(over="ignore"):
                x = x.astype(np.float32, copy=False)
            refuse_not_finite(x)  # 1e60 is finite in float64 only
        else:
            x = _as_int32(x)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set in three splits that share a sample shape and their classes.

    Args:
        name: Its name in reports.
        train: The samples that models are trained on.
        validation: The samples that settings are chosen on.
        test: The samples that results are reported on.
        class_names: Name of each class; label 0 is the first.
        input_range: Smallest and largest value that a sample can hold, for example (0.0, 1.0).
        license: The license of the data, as stated by its source.
        description: What the data are, where they come from and how they were split.
        unlabeled: More training samples, which have no label; shape and dtype as in a split.

    Raises:
        DataError: A label has no class name, a value lies outside `input_range`, or the splits have
            samples of different shapes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    input_range: tuple[float, float]
    license: str = "not stated"
    description: str = ""
    unlabeled: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(str(name) for name in self.class_names))
        low, high = (float(bound) for bound in self.input_range)
        if not low < high:
            raise DataError(
                f"Expected an input range (low, high) with low below high. "
                f"Received: {self.input_range}."
            )
        object.__setattr__(self, "input_range", (low, high))
        for part, split in self.splits.items():
            self._check_samples(part, split.x)
            if split.y.max() >= self.classes:
                worst = int(split.y.argmax())
                raise DataError(
                    f"Labels out of range in {part}: expected 0 to {self.classes - 1}, as there "
                    f"are {self.classes} class names. Received: {split.y[worst]} at sample "
                    f"{worst}. Name every class, or correct the label."
                )
            named = copy.copy(split)  # the caller's own may belong to another data set, too
            object.__setattr__(named, "class_names", self.class_names)
            object.__setattr__(self, part, named)
        if self.unlabeled is not None:
            # Samples are samples: a split checks and casts them.
            x = Split(self.unlabeled, np.zeros(len(self.unlabeled), np.int64)).x
            self._check_samples("unlabeled", x)
            object.__setattr__(self, "unlabeled", x)

    def _check_samples(self, part: str, x: np.ndarray) -> None:
        if x.shape[1:] != self.sample_shape:
            raise DataError(
                f"Expected samples of shape {self.sample_shape} in every split, as in train. "
                f"Received: {x.shape[1:]} in {part}. Resize or crop them alike."
            )
        low, high = self.input_range
        slack = 1e-5 * (high - low)
        least, most = float(x.min()), float(x.max())
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

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def to_dict(self) -> dict[str, Any]:
        """Returns a summary for JSON, without the samples."""
        return {
            "name": self.name,
            "description": self.description,
            "license": self.license,
            "sample_shape": list(self.sample_shape),
            "dtype": str(self.train.x.dtype),
            "input_range": list(self.input_range),
            "class_names": list(self.class_names),
            "splits": {
                part: {
                    "samples": len(split),
                    "samples_per_class": np.bincount(split.y, minlength=self.classes).tolist(),
                }
                for part, split in self.splits.items()
            }
            | ({} if self.unlabeled is None else {"unlabeled": {"samples": len(self.unlabeled)}}),
        }


def _as_int32(x: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int32)
    if x.min() < limits.min or x.max() > limits.max:
        raise DataError(
            f"Expected whole numbers from {limits.min} to {limits.max}, as int32 holds them. "
            f"Received: {x.dtype} from {x.min()} to {x.max()}. Scale the samples, or convert them "
            "to float32."
        )
    return x.astype(np.int32, copy=False)


def refuse_not_finite(x: np.ndarray) -> None:
    """Raises if a sample holds NaN or infinity.

    Args:
        x: One sample or more, shape (samples, ...), numbers.

    Raises:
        DataError: With the number of such samples and the first of them.
    """
    # min and max carry a NaN through and need no second array of the data's size.
    if np.isfinite(x.min()) and np.isfinite(x.max()):
        return
    bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    raise DataError(
        f"Expected finite samples. Received: NaN or infinity in {int(bad.sum())} of {len(x)} "
        f"samples, first in sample {int(bad.argmax())}. Drop or repair them."
    )


@check_arguments
def as_labels(y: npt.ArrayLike, *, quiet: bool = False) -> np.ndarray:
    """Returns labels of any usual form as class indices.

    Integers, booleans and whole floats of shape (samples,) or (samples, 1) keep their values; rows
    of shape (samples, classes) must be one-hot. A conversion is reported.

    Args:
        y: The labels.
        quiet: Do not report a conversion.

    Returns:
        Class of each sample, shape (samples,), int64.

    Raises:
        DataError: Labels are not whole numbers, or rows are not one-hot.

    Example:
        >>> from kdtflite.data import as_labels
        >>> as_labels([[0, 1], [1, 0]], quiet=True)
        array([1, 0])
    """
    labels = np.asarray(y)
    if labels.dtype.kind not in "biuf":
        raise DataError(
            f"Expected labels as class indices 0, 1, 2, ... Received: dtype {labels.dtype}. "
            "Number the classes, and give their names as `class_names` in a data set or .npz "
            "file, `labels` for evaluate."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        return _decode_one_hot(labels, quiet=quiet)
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
    far = np.flatnonzero((labels >= _MOST_CLASSES) | (labels <= -_MOST_CLASSES))
    if labels.dtype != np.bool_ and far.size:
        raise DataError(
            f"Expected labels as class indices 0, 1, 2, ... Received: {labels[far[0]]} at sample "
            f"{far[0]}, and {far.size} labels in all beyond {_MOST_CLASSES:,}. Number the classes "
            "without gaps."
        )
    return labels.astype(np.int64)


@check_arguments
def stratified_split(
    y: np.ndarray, held_out: float | int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits samples in two so that every class keeps its share.

    Args:
        y: Class of each sample, shape (samples,).
        held_out: Size of the second part: a share below 1 (float) or a number of samples (int).
        seed: Chooses the samples; the same seed gives the same split.

    Returns:
        The indices of the samples that stay and of those held out, both ascending, int64. Every
        sample is in one of the two.

    Raises:
        ConfigurationError: One of the parts would be empty.

    Example:
        >>> import numpy as np
        >>> from kdtflite.data import stratified_split
        >>> keep, held_out = stratified_split(np.array([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
        >>> len(keep), len(held_out)
        (3, 3)
    """
    total = len(y)
    count = round(held_out * total) if isinstance(held_out, float) else int(held_out)
    if not 0 < count < total:
        raise ConfigurationError(
            f"Expected to hold out at least 1 and fewer than all of {total} samples. Received: "
            f"{held_out} (= {count} samples). Change the fraction or bring more samples."
        )
    # NumPy's policy freezes the stream of RandomState, while that of a Generator may change with
    # a version; a test set that changes with an upgrade would be worthless.
    random = np.random.RandomState(seed)
    members = [random.permutation(np.flatnonzero(y == label)) for label in np.unique(y)]
    shares = np.array([len(group) for group in members]) * (count / total)
    takes = np.floor(shares).astype(int)
    # The samples left over by rounding down go to the classes that lost most by it.
    takes[np.argsort(takes - shares, kind="stable")[: count - takes.sum()]] += 1
    out = np.concatenate([group[:take] for group, take in zip(members, takes, strict=True)])
    keep = np.ones(total, dtype=bool)
    keep[out] = False
    return np.flatnonzero(keep), np.sort(out)


def _decode_one_hot(rows: np.ndarray, *, quiet: bool) -> np.ndarray:
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
