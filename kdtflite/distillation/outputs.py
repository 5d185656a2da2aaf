"""What a model's outputs mean, and the logits that losses take."""

from __future__ import annotations

from typing import Any, Literal, get_args

import tensorflow as tf

from kdtflite.errors import ConfigurationError, choose
from kdtflite.models.inspect import number_of_classes, output_kind
from kdtflite.progress import say

__all__ = ["Outputs", "Task", "as_classes", "resolve_outputs", "resolve_task", "to_logits"]

Outputs = Literal["logits", "probabilities", "sigmoid", "values"]
"""Logits; softmax probabilities; a sigmoid's, each for itself; or real values (regression)."""

Task = Literal["multiclass", "multilabel", "regression"]
"""One class a sample (or position); yes or no for each of several labels; real values."""

# The smallest normal float32: a probability that underflowed stays finite in log space.
_TINY = 1.1754944e-38
# Half of float32's step below 1: a sigmoid nearer to 1 than that has been rounded to 1.
_NEAR_ONE = 2.0**-25


def to_logits(outputs: Any, kind: Outputs) -> tf.Tensor:
    """Returns float32 logits from a model's outputs, which are of `kind`.

    The logarithm of a probability is a logit: softmax(log p) = p. That of a sigmoid's is
    log(p / (1 - p)).
    """
    outputs = tf.cast(outputs, tf.float32)
    if kind == "probabilities":
        return tf.math.log(tf.maximum(outputs, _TINY))
    if kind == "sigmoid":
        no = tf.math.log(tf.maximum(1.0 - outputs, _NEAR_ONE))
        return tf.math.log(tf.maximum(outputs, _TINY)) - no
    return outputs


def as_classes(logits: tf.Tensor, task: Task) -> tf.Tensor:
    """Returns logits with the classes of one decision on the last axis.

    A yes-or-no label with logit z is a choice between two classes with logits 0 and z, since
    softmax(0, z) = (1 - sigmoid(z), sigmoid(z)): every loss between classes works for it.

    Args:
        logits: Shape (batch, ..., classes), or (batch, labels) for "multilabel".
        task: What is decided.

    Returns:
        `logits`, or shape (batch, labels, 2) for "multilabel".
    """
    if task != "multilabel":
        return logits
    return tf.stack([tf.zeros_like(logits), logits], axis=-1)


def resolve_outputs(model: Any, outputs: str, *, role: str, task: str = "auto") -> Outputs:
    """Returns what `model` gives, as said or as its last layer shows.

    Args:
        model: A tf_keras model with one output.
        outputs: One of `Outputs`, or "auto".
        role: "teacher" or "student", for messages.
        task: One of `Task`, or "auto"; regression has values whatever the last layer.

    Raises:
        ConfigurationError: `outputs` is none of the valid words, or the last layer tells nothing.
    """
    if outputs not in ("auto", *get_args(Outputs)):
        raise ConfigurationError(
            f"Expected {role}_outputs to be one of auto, {', '.join(get_args(Outputs))}. "
            f"Received: {outputs!r}."
        )
    if outputs != "auto":
        return outputs  # type: ignore[return-value]
    if task == "regression":
        return "values"
    found = output_kind(model)
    if found == "unknown":
        raise ConfigurationError(
            f"The {role}'s last layer ({model.layers[-1].name}, "
            f"{type(model.layers[-1]).__name__}) does not show whether it gives logits or "
            f'probabilities. Pass {role}_outputs="logits" or {role}_outputs="probabilities".'
        )
    say(f"The {role} {model.name!r} ends in {_NAMES[found]} (seen from its last layer).")
    return found


def resolve_task(student: Any, outputs: Outputs, task: str) -> Task:
    """Returns what a student decides, as said or as its outputs show.

    Args:
        student: A tf_keras model with one output.
        outputs: What it gives.
        task: One of `Task`, or "auto": a sigmoid, or one output unit, means yes or no.

    Raises:
        ConfigurationError: No such task, or one that the outputs contradict.
    """
    if task == "auto":
        if outputs == "values":
            return "regression"
        one = number_of_classes(student) == 1
        return "multilabel" if one or outputs == "sigmoid" else "multiclass"
    choose(task, get_args(Task), what="task")
    valid = {
        "multiclass": ("logits", "probabilities"),
        "multilabel": ("logits", "sigmoid"),
        "regression": ("values",),
    }[task]
    if outputs not in valid:
        raise ConfigurationError(
            f"A student that gives {_NAMES[outputs]} cannot be one of task={task!r}. "
            f"Expected student_outputs to be one of: {', '.join(valid)}."
        )
    return task  # type: ignore[return-value]


_NAMES = {
    "logits": "logits",
    "probabilities": "probabilities",
    "sigmoid": "probabilities, each for itself (sigmoid)",
    "values": "values",
}
