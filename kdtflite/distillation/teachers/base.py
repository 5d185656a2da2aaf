"""The base class of all teachers."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import tensorflow as tf

from kdtflite.arguments import ChecksArguments
from kdtflite.distillation.outputs import Outputs
from kdtflite.distillation.step import Observed
from kdtflite.distillation.taps import TappedModel
from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.models.keras_internals import get_input_structure

__all__ = ["Teacher"]

Shape = tuple[int | None, ...]


class Teacher(ChecksArguments, abc.ABC):
    """Gives logits for the student's inputs; its weights are never trained, saved or counted.

    It is a plain object on purpose: in a Keras object, Keras would train, save and count them.

    Attributes:
        differentiable: Whether gradients with respect to the inputs flow through it.
        runs_python: Whether it calls Python code in every step, which XLA cannot compile.
        may_vary: Whether its answers to the same batch need not be the same.
        own_batches: Whether it only teaches on batches that it made itself, as a cache does.
        name: For messages and reports.
        outputs: What it gives before the conversion to logits.
        output_shape: Shape of its logits, batch first: mostly (None, classes).
        preprocessing: Turns the student's inputs into the teacher's, with TensorFlow operations;
            None if they are the same.
    """

    differentiable: bool = False
    runs_python: bool = False
    may_vary: bool = False
    own_batches: bool = False

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
        """Returns a SHA-256 of everything that decides its outputs, to notice stale caches."""

    def tap(self, layers: Iterable[str]) -> dict[str, Shape]:
        """Makes `observe` give the outputs of `layers` too, and returns their shapes by path.

        Raises:
            ConfigurationError: There is no such layer, or the teacher's layers cannot be seen.
        """
        if wanted := list(layers):
            raise ConfigurationError(
                f"The teacher {self.name!r} is a {type(self).__name__}, whose layers cannot be "
                f"tapped. Expected a Keras model, or a cache with feature maps, for losses on "
                f"layers. Received: {', '.join(wanted)}."
            )
        return {}

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:
        """Returns its outputs for a batch, from one forward pass.

        Args:
            x: A batch as `fit` was given it.
            recording: Where input gradients are needed; only for `differentiable` teachers.
        """
        del recording
        return Observed(tf.stop_gradient(self(x)))

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless the teacher takes what the student takes."""

    def check_repeats(self, x: Any) -> None:
        """Says so if the teacher answers differently when it is given the same batch again."""


def observe_function(
    function: Callable[[Any], tf.Tensor], x: Any, recording: contextlib.ExitStack | None
) -> Observed:
    """Returns the outputs of a differentiable teacher without layers for a batch.

    Args:
        function: Returns the logits for a batch.
        x: The batch.
        recording: As in `Teacher.observe`.
    """
    run = TappedModel(lambda x, training: function(x), (), role="teacher")
    _, seen = run.observe(x, training=False, recording=recording)
    return seen if recording is not None else replace(seen, logits=tf.stop_gradient(seen.logits))


def preprocess_specs(preprocessing: Callable[[Any], Any] | None, specs: Any) -> Any:
    """Returns tensors, or specs of them, as the teacher gets them for the student's inputs.

    Args:
        preprocessing: That of the teacher.
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
            f"({format_shapes(tf.nest.flatten(specs))}) inside a TensorFlow graph: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return traced.structured_outputs


def check_inputs_fit(given: list[Any], wanted: list[Any], *, preprocessed: bool) -> None:
    """Raises ShapeMismatchError unless tensors shaped like `given` can be fed as `wanted`.

    Args:
        given: The inputs that the teacher would get; anything with `shape`, batch first.
        wanted: The inputs that it takes.
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
            f"Received: teacher input {format_shapes(wanted)}, {how} {format_shapes(given)}. "
            "Pass teacher_preprocessing= to turn the student's inputs into the teacher's."
        )


def get_input_specs(model: Any) -> Any:
    """Returns tf.TensorSpec of a Keras model's inputs, in the structure that it takes."""
    return tf.nest.map_structure(
        lambda tensor: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype),
        get_input_structure(model),
    )


def format_shapes(tensors: Iterable[Any]) -> str:
    """Returns the shapes of tensors as text."""
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
