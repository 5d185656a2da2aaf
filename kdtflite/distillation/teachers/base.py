"""What every teacher is: inputs of the student in, logits out."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from kdtflite.distillation.outputs import Outputs
from kdtflite.distillation.step import Observed
from kdtflite.errors import ConfigurationError, ShapeMismatchError

__all__ = ["Teacher"]

Shape = tuple[int | None, ...]


class Teacher(abc.ABC):
    """Gives logits for the student's inputs; its weights are never trained, saved or counted.

    A plain object on purpose: Keras would otherwise count a teacher's weights among those it
    trains, saves and counts.

    Attributes:
        differentiable: Whether gradients by the inputs flow through it.
        name: For messages and reports.
        outputs: What it gives before it is turned into logits.
        output_shape: Shape of its logits, batch first: (None, classes) for most.
        preprocessing: Turns the student's inputs into the teacher's, with TensorFlow operations;
            None where they are the same.
    """

    differentiable: bool = False

    name: str
    outputs: Outputs
    output_shape: Shape
    preprocessing: Callable[[Any], Any] | None = None

    @abc.abstractmethod
    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, classes), float32, for the student's inputs `x`.

        Runs inside a compiled training step, with training=False.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a SHA-256 of what decides its answers, so that a stale cache is noticed."""

    def tap(self, layers: Iterable[str]) -> dict[str, Shape]:
        """Makes `observe` give the outputs of `layers` too, and returns their shapes by path.

        Raises:
            ConfigurationError: No such layer, or a teacher whose layers cannot be seen.
        """
        if wanted := list(layers):
            raise ConfigurationError(
                f"The teacher {self.name!r} is a {type(self).__name__}, whose layers cannot be "
                f"tapped. Expected a Keras model, or a cache with feature maps, for losses on "
                f"layers. Received: {', '.join(wanted)}."
            )
        return {}

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:
        """Returns what it gives for a batch, in one forward pass.

        Args:
            x: A batch as `fit` was given it.
            recording: Where gradients by the inputs are wanted; only for `differentiable` ones.
        """
        del recording
        return Observed(tf.stop_gradient(self(x)))

    def student_inputs(self, x: Any) -> Any:
        """Returns what the student is given of a batch."""
        return x

    def check_inputs(self, student: Any) -> None:  # noqa: B027
        """Raises ShapeMismatchError unless the teacher takes what the student takes."""


def prepared(preprocessing: Callable[[Any], Any] | None, specs: Any) -> Any:
    """Returns what has the shapes of the teacher's inputs, as made of the student's.

    Args:
        preprocessing: The teacher's.
        specs: tf.TensorSpec of the student's inputs, in their structure.

    Raises:
        ConfigurationError: `preprocessing` does not run on them.
    """
    if preprocessing is None:
        return specs
    try:
        # Traced, as in the training step; sizes that the student leaves open stay open.
        traced = tf.function(preprocessing).get_concrete_function(specs)
    except Exception as error:  # the user's function may raise anything
        raise ConfigurationError(
            "teacher_preprocessing= does not run on the student's inputs "
            f"({shapes(tf.nest.flatten(specs))}) inside a TensorFlow graph: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return traced.structured_outputs


def check_fits(given: list[Any], wanted: list[Any], *, preprocessed: bool) -> None:
    """Raises ShapeMismatchError unless tensors of `given`'s shapes can be fed as `wanted`.

    Args:
        given: What the teacher would get; anything with `shape`, batch first.
        wanted: What it takes.
        preprocessed: Whether teacher_preprocessing made `given`, for the message.
    """
    fits = len(given) == len(wanted) and all(
        got.shape[1:].is_compatible_with(want.shape[1:])
        for got, want in zip(given, wanted, strict=True)
    )
    if not fits:
        how = (
            "teacher_preprocessing made of the student's inputs"
            if preprocessed
            else "student input"
        )
        raise ShapeMismatchError(
            "The teacher cannot take the student's inputs. Expected the same shapes. "
            f"Received: teacher input {shapes(wanted)}, {how} {shapes(given)}. "
            "Pass teacher_preprocessing= to turn the student's inputs into the teacher's."
        )


def input_specs(model: Any) -> Any:
    """Returns tf.TensorSpec of a Keras model's inputs, in the structure in which it takes them."""
    structure = getattr(model, "_nested_inputs", None)
    return tf.nest.map_structure(
        lambda tensor: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype),
        model.inputs[0] if structure is None else structure,
    )


def shapes(tensors: Iterable[Any]) -> str:
    """Returns the shapes of tensors as a text."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
