"""Checks of the outputs of teachers outside TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.distillation.outputs import Outputs
from kdtflite.distillation.teachers.base import Shape
from kdtflite.errors import DataError, ShapeMismatchError

__all__ = ["as_array", "check_outputs", "looks_like_probabilities"]

# The error that rounding may add to a probability.
_SLACK = 1e-3


def as_array(given: Any, *, name: str) -> NDArray[Any]:
    """Returns the outputs of the teacher `name` as an array of numbers.

    Raises:
        DataError: They are something else.
    """
    torch = type(given).__module__.split(".")[0] == "torch"
    try:
        array = np.asarray(given)
    except Exception as error:  # arrays of other libraries raise anything here
        raise DataError(
            f"The outputs of the teacher {name!r} cannot be read as a NumPy array: {error} "
            + (
                "Return outputs.detach().float().cpu().numpy(), and compute them under "
                "torch.no_grad()."
                if torch
                else "Return a NumPy array, or what np.asarray() can read."
            )
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"Expected numbers from the teacher {name!r}, shape (batch, classes). Received: "
            f"{type(given).__name__} of dtype {array.dtype}."
        )
    return array


def check_outputs(
    given: Any, count: int, shape: Shape, outputs: Outputs, *, name: str
) -> NDArray[np.float32]:
    """Returns the outputs of the teacher `name` for a batch of `count` samples, as float32.

    Args:
        given: Its outputs.
        count: Number of samples in the batch.
        shape: The expected shape, batch first; None where any size will do.
        outputs: What the numbers mean.
        name: Name of the teacher, for messages.

    Raises:
        ShapeMismatchError: They have another shape.
        DataError: They are not finite numbers, or not probabilities where they should be.
    """
    array = as_array(given, name=name)
    wanted = (count, *shape[1:])
    if len(array.shape) != len(wanted) or any(
        want not in (None, got) for got, want in zip(array.shape, wanted, strict=True)
    ):
        raise ShapeMismatchError(
            f"Expected outputs of shape {wanted} from the teacher {name!r} for a batch of {count}. "
            f"Received: {array.shape}."
        )
    with np.errstate(over="ignore"):  # reported below
        array = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        where = np.unique(np.nonzero(~finite)[0])
        raise DataError(
            f"Expected finite numbers from the teacher {name!r}. Received NaN or infinity for "
            f"{len(where)} of {count} samples, the first at {where[0]} in the batch."
        )
    if outputs in ("probabilities", "sigmoid") and array.size:
        least, most = float(array.min()), float(array.max())
        if least < -_SLACK or most > 1 + _SLACK:
            raise DataError(
                f"Expected probabilities, 0 to 1, from the teacher {name!r}, as its outputs are "
                f'"{outputs}". Received: values from {least:.4g} to {most:.4g}. Pass '
                'outputs="logits" if it gives logits.'
            )
    return array


def looks_like_probabilities(array: NDArray[Any]) -> bool:
    """Returns whether the last axis looks like a softmax's, which logits never do by accident."""
    if array.ndim < 2 or array.shape[-1] < 2 or not array.size or array.min() < 0:
        return False
    return bool(np.allclose(array.sum(axis=-1, dtype=np.float64), 1.0, atol=_SLACK))
