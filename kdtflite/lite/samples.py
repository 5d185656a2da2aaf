"""Fits samples to a file's inputs, and checks them, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.errors import DataError
from kdtflite.lite.tensors import TensorSpec

__all__ = ["find_scaling_problems", "fit_samples"]

Array = NDArray[Any]

# If more than this share of the nonzero values lies outside an input's range, the samples are
# scaled differently than in training.
_MAX_SATURATED = 0.25
# At most this many samples are inspected, evenly spread.
_INSPECTED = 512


def fit_samples(
    inputs: Sequence[TensorSpec], x: ArrayLike | Mapping[str, ArrayLike]
) -> dict[str, Array]:
    """Returns the samples as arrays by input name.

    Args:
        inputs: The file's inputs.
        x: Samples, shape (samples, ...), or a dict of them by input name.

    Raises:
        DataError: They do not fit the inputs, or contain NaN.
    """
    names = [spec.name for spec in inputs]
    if not isinstance(x, Mapping):
        if len(names) > 1:
            raise DataError(
                f"This file has {len(names)} inputs. Expected a dict with the keys "
                f"{', '.join(names)}. Received: one {type(x).__name__}."
            )
        x = {names[0]: x}
    if set(x) != set(names):
        raise DataError(
            f"Expected inputs named {', '.join(names)}. Received: "
            f"{', '.join(map(str, x)) or 'none'}."
        )
    for name, value in x.items():
        if hasattr(value, "element_spec"):
            raise DataError(
                f"Expected an array of samples for input {name}. Received: a tf.data.Dataset. "
                "Pass arrays, for example np.concatenate(list(dataset.as_numpy_iterator())) "
                "of a dataset of batches of samples."
            )
    samples = {name: np.asarray(value) for name, value in x.items()}
    for spec in inputs:
        _check_samples(spec, samples[spec.name])
    if len({len(value) for value in samples.values()}) > 1:
        lengths = ", ".join(f"{name} {len(value)}" for name, value in samples.items())
        raise DataError(
            f"Expected the same number of samples for every input. Received: {lengths}."
        )
    return samples


def find_scaling_problems(inputs: Sequence[TensorSpec], samples: Mapping[str, Array]) -> list[str]:
    """Returns a sentence for each input whose samples are scaled differently than in training.

    The sign is a large share of real values outside the range of an integer input, such as raw
    pixels 0..255 for a file trained on 0..1.
    """
    found = (_describe_saturation(spec, samples[spec.name]) for spec in inputs)
    return [problem for problem in found if problem is not None]


def _check_samples(spec: TensorSpec, value: Array) -> None:
    wanted = spec.shape_signature[1:]
    if value.ndim == 0 or not _is_same_shape(wanted, value.shape[1:]):
        single = _is_same_shape(wanted, value.shape)
        raise DataError(
            f"Expected shape (samples{''.join(f', {size}' for size in wanted)}) for input "
            f"{spec.name}. Received: {value.shape}. "
            + (
                "A single sample needs a leading axis: x[None]."
                if single
                else "Reshape the data, with the samples first."
            )
        )
    if len(value) == 0:
        raise DataError(f"Expected at least one sample for input {spec.name}. Received: none.")
    if value.dtype.kind not in "biuf":
        raise DataError(f"Expected numbers for input {spec.name}. Received: {value.dtype}.")
    if np.issubdtype(value.dtype, np.floating) and np.isnan(value).any():
        where = np.unique(np.nonzero(np.isnan(value))[0])
        raise DataError(
            f"Expected no NaN in input {spec.name}. Received NaN in {len(where)} samples, "
            f"the first at {where[0]}. Clean the data first."
        )


def _is_same_shape(wanted: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        want in (-1, got) for want, got in zip(wanted, shape, strict=True)
    )


def _describe_saturation(spec: TensorSpec, value: Array) -> str | None:
    limits = spec.range
    if limits is None or spec.scale is None or str(value.dtype) == spec.dtype:
        return None
    if len(value) > _INSPECTED:
        value = value[np.linspace(0, len(value) - 1, _INSPECTED).astype(int)]
    (low, high), step = limits, spec.scale
    least, most = float(value.min()), float(value.max())
    if least >= low - step and most <= high + step:
        return None
    # Zeros say nothing: 0 is 0 on every scale, and most of a drawing may be empty.
    outside = np.count_nonzero(
        (value < np.float64(low - step)) | (value > np.float64(high + step))
    ) / np.count_nonzero(value)
    if outside <= _MAX_SATURATED:
        return None
    return (
        f"Expected samples scaled as in training: input {spec.name} of the file holds values from "
        f"{low:.4g} to {high:.4g}. Received: values from {least:.4g} to {most:.4g}; {outside:.0%} "
        "of those other than 0 saturate. Apply the same preprocessing as in training."
    )
