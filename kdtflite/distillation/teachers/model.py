"""A Keras model as the teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kdtflite.errors import ConfigurationError, ShapeMismatchError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.inspect import number_of_classes, output_kind
from kdtflite.progress import say

__all__ = ["ModelTeacher", "logits_of", "resolve_outputs"]

_KINDS = ("auto", "logits", "probabilities")


class ModelTeacher:
    """A frozen Keras model that gives logits for the student's inputs.

    It is run with training=False and without gradient. It is a plain object on purpose: Keras
    would otherwise count the teacher's weights among those it trains, saves and counts.

    Args:
        model: A tf_keras or Keras 3 model with one output, shape (batch, classes).
        preprocessing: Turns the student's inputs into the teacher's (another size or scaling);
            TensorFlow operations only, so that it runs inside the training step.
        outputs: "logits", "probabilities", or "auto" to read it off the last layer.
    """

    def __init__(
        self,
        model: Any,
        *,
        preprocessing: Callable[[Any], Any] | None = None,
        outputs: str = "auto",
    ) -> None:
        self.model = as_tf_keras(model)
        self.preprocessing = preprocessing
        self.outputs = resolve_outputs(self.model, outputs, role="teacher")
        self.classes = number_of_classes(self.model)

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, classes), for the student's inputs `x`."""
        if self.preprocessing is not None:
            x = self.preprocessing(x)
        return tf.stop_gradient(logits_of(self.model(x, training=False), self.outputs))

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless the teacher takes what the student takes."""
        given = tf.nest.flatten(self._prepared(student))
        fits = len(given) == len(self.model.inputs) and all(
            got.shape[1:].is_compatible_with(wanted.shape[1:])
            for got, wanted in zip(given, self.model.inputs, strict=True)
        )
        if not fits:
            how = (
                "teacher_preprocessing made of the student's inputs"
                if self.preprocessing
                else "student input"
            )
            raise ShapeMismatchError(
                "The teacher cannot take the student's inputs. Expected the same shapes. "
                f"Received: teacher input {_shapes(self.model.inputs)}, "
                f"{how} {_shapes(given)}. "
                "Pass teacher_preprocessing= to turn the student's inputs into the teacher's."
            )

    def _prepared(self, student: Any) -> Any:
        """Returns what has the shapes of the teacher's inputs, as made of the student's."""
        specs = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype),
            _as_given(student),
        )
        if self.preprocessing is None:
            return specs
        try:
            # Traced, as in the training step; sizes that the student leaves open stay open.
            traced = tf.function(self.preprocessing).get_concrete_function(specs)
        except Exception as error:  # the user's function may raise anything
            raise ConfigurationError(
                "teacher_preprocessing= does not run on the student's inputs "
                f"({_shapes(tf.nest.flatten(specs))}) inside a TensorFlow graph: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        return traced.structured_outputs


def logits_of(outputs: Any, kind: str) -> tf.Tensor:
    """Returns float32 logits from a model's outputs, which are of `kind`.

    The logarithm of a probability is a logit: softmax(log p) = p.
    """
    outputs = tf.cast(outputs, tf.float32)
    if kind == "logits":
        return outputs
    # The smallest normal float32: a probability that underflowed stays finite in log space.
    return tf.math.log(tf.maximum(outputs, 1.1754944e-38))


def resolve_outputs(model: Any, outputs: str, *, role: str) -> str:
    """Returns "logits" or "probabilities" for `model`, as said or as its last layer shows.

    Raises:
        ConfigurationError: `outputs` is none of the valid words, or the last layer tells nothing.
    """
    if outputs not in _KINDS:
        raise ConfigurationError(
            f"Expected {role}_outputs to be one of {', '.join(_KINDS)}. Received: {outputs!r}."
        )
    if outputs != "auto":
        return outputs
    found = output_kind(model)
    if found == "unknown":
        raise ConfigurationError(
            f"The {role}'s last layer ({model.layers[-1].name}, "
            f"{type(model.layers[-1]).__name__}) does not show whether it gives logits or "
            f'probabilities. Pass {role}_outputs="logits" or {role}_outputs="probabilities".'
        )
    say(f"The {role} {model.name!r} ends in {found} (seen from its last layer).")
    return found


def _as_given(model: Any) -> Any:
    """Returns the model's input tensors in the structure in which it takes them."""
    structure = getattr(model, "_nested_inputs", None)
    return structure if structure is not None else model.inputs[0]


def _shapes(tensors: Any) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
