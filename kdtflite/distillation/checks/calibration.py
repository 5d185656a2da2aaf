"""Sets the activation ranges of a quantization-aware student before its first step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import ConfigurationError
from kdtflite.progress import say

__all__ = ["NeedsCalibration", "calibrate_on_first_batches"]

_BATCHES = 8


@runtime_checkable
class NeedsCalibration(Protocol):
    """What `quantize_aware` attaches to its model as `model.quantization`."""

    calibrated: bool

    def calibrate(self, batches: Any) -> None:
        """Sets every activation range from batches of inputs."""


def calibrate_on_first_batches(
    student: keras.Model,
    x: Any,
    *,
    batch_size: int | None,
    prepare_inputs: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """Calibrates `student` on the first batches of `x` if its ranges were never set.

    Args:
        student: The student; one without fake quantization stays as it is.
        x: What `fit` was given: arrays, a tf.data.Dataset, a Sequence or a generator.
        batch_size: Samples per batch, for arrays.
        prepare_inputs: Turns a batch's samples into the student's inputs.

    Returns:
        `x`, complete: batches that were taken from a generator are put back.

    Raises:
        ConfigurationError: No batches can be taken from `x`.
    """
    quantization = getattr(student, "quantization", None)
    if not isinstance(quantization, NeedsCalibration) or quantization.calibrated or x is None:
        return x
    batches, x = _take_batches(x, batch_size or 32)
    say(
        f"The student's activation ranges were not set: calibrating on the first {len(batches)} "
        "batches. Pass representative_data= to quantize_aware() to choose the samples."
    )
    quantization.calibrate([prepare_inputs(batch) for batch in batches])
    return x


def _take_batches(x: Any, batch_size: int) -> tuple[list[Any], Any]:
    if isinstance(x, tf.data.Dataset):
        return [_unpack_inputs(batch) for batch in x.take(_BATCHES)], x
    if isinstance(x, keras.utils.Sequence):
        return [_unpack_inputs(x[i]) for i in range(min(_BATCHES, len(x)))], x
    if isinstance(x, Iterator):
        taken = list(itertools.islice(x, _BATCHES))
        return [_unpack_inputs(batch) for batch in taken], itertools.chain(taken, x)
    if not all(hasattr(part, "__len__") and hasattr(part, "shape") for part in tf.nest.flatten(x)):
        raise ConfigurationError(
            "The student's activation ranges were not set. Expected arrays, a tf.data.Dataset, a "
            f"Sequence or a generator to set them from. Received: a {type(x).__name__}. Pass "
            "representative_data= to quantize_aware()."
        )
    count = min(len(part) for part in tf.nest.flatten(x))
    starts = range(0, min(count, _BATCHES * batch_size), batch_size)
    return [
        tf.nest.map_structure(lambda part, s=start: np.asarray(part[s : s + batch_size]), x)
        for start in starts
    ], x


def _unpack_inputs(batch: Any) -> Any:
    return keras.utils.unpack_x_y_sample_weight(batch)[0]
