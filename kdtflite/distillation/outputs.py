"""The kinds of outputs and tasks, and the logits that losses take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import tensorflow as tf

from kdtflite.errors import ConfigurationError, choose
from kdtflite.models.inspect import count_classes, find_output_kind
from kdtflite.models.layer_names import strip_prefix
from kdtflite.progress import say

__all__ = [
    "Outputs",
    "Task",
    "as_classes",
    "pick_for_output",
    "resolve_outputs",
    "resolve_task",
    "to_logits",
]

Outputs = Literal["logits", "probabilities", "sigmoid", "values"]
"""Logits; softmax probabilities; independent sigmoid probabilities; real values (regression)."""

Task = Literal["multiclass", "multilabel", "regression"]
"""One class per sample (or position); yes or no for each label; real values."""

# The smallest normal float32: a probability that underflowed stays finite in log space.
_TINY = 1.1754944e-38
# Half of float32's step below 1: a sigmoid closer to 1 than this was rounded to 1.
_NEAR_ONE = 2.0**-25


def to_logits(outputs: Any, kind: Outputs, *, step: float = 0.0) -> tf.Tensor:
    """Returns float32 logits computed from a model's outputs.

    The logarithm of a softmax probability is a logit, since softmax(log p) = p. The logit of a
    sigmoid probability is log(p / (1 - p)).

    Args:
        outputs: The model's outputs.
        kind: What they are.
        step: The distance of two codes if the probabilities are rounded, as `find_output_step`
            returns it. A probability of 0 then counts as half a step.
    """
    outputs = tf.cast(outputs, tf.float32)
    if step and kind in ("probabilities", "sigmoid"):
        outputs = tf.where(outputs < _TINY, step / 2, outputs)
    if kind == "probabilities":
        return tf.math.log(tf.maximum(outputs, _TINY))
    if kind == "sigmoid":
        no = tf.math.log(tf.maximum(1.0 - outputs, _NEAR_ONE))
        return tf.math.log(tf.maximum(outputs, _TINY)) - no
    return outputs


def as_classes(logits: tf.Tensor, task: Task) -> tf.Tensor:
    """Returns logits with the classes of one decision on the last axis.

    A yes-or-no label with logit z is a choice between two classes with logits 0 and z, since
    softmax(0, z) = (1 - sigmoid(z), sigmoid(z)). So every loss on classes works for it.

    Args:
        logits: Shape (batch, ..., classes), or (batch, labels) for "multilabel".
        task: What the model decides.

    Returns:
        `logits`, or shape (batch, labels, 2) for "multilabel".
    """
    if task != "multilabel":
        return logits
    return tf.stack([tf.zeros_like(logits), logits], axis=-1)


def resolve_outputs(model: Any, outputs: str, *, role: str, task: str = "auto") -> Outputs:
    """Returns what the outputs of `model` are: as given, or as its last layer shows.

    Args:
        model: A tf_keras model with one output.
        outputs: One of `Outputs`, or "auto".
        role: "teacher" or "student", for messages.
        task: One of `Task`, or "auto"; regression has values whatever the last layer is.

    Raises:
        ConfigurationError: `outputs` is not a valid word, or the last layer does not show it.
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
    found = find_output_kind(model)
    if found == "unknown":
        raise ConfigurationError(
            f"The {role}'s last layer ({model.layers[-1].name}, "
            f"{type(model.layers[-1]).__name__}) does not show whether it gives logits or "
            f'probabilities. Pass {role}_outputs="logits" or {role}_outputs="probabilities".'
        )
    say(f"The {role} {model.name!r} ends in {_NAMES[found]} (seen from its last layer).")
    return found


def resolve_task(
    student: Any, outputs: Outputs, task: str, teacher_outputs: str | None = None
) -> Task:
    """Returns what a student decides: as given, or as its outputs and its teacher's show.

    Args:
        student: A tf_keras model with one output.
        outputs: What its outputs are.
        task: One of `Task`, or "auto": a sigmoid, or one output unit, means yes or no.
        teacher_outputs: What the teacher's outputs are; None without a teacher.

    Raises:
        ConfigurationError: An unknown task, or one that the outputs contradict.
    """
    if task == "auto" and outputs == "values" and teacher_outputs != "sigmoid":
        return "regression"
    if task == "auto":
        count = count_classes(student)
        by_teacher = teacher_outputs == "sigmoid" and outputs != "sigmoid"
        yes_or_no = by_teacher or count == 1 or outputs == "sigmoid"
        decides = f"for each of {count} labels" if count > 1 else ""
        decides = f"yes or no {decides}".rstrip() if yes_or_no else f"one of {count} classes"
        whose = "the teacher's" if by_teacher else "its"
        say(
            f"The student {student.name!r} is taken to decide {decides} (seen from {whose} last "
            "layer); pass task= if it does not."
        )
        if not by_teacher:
            return "multilabel" if yes_or_no else "multiclass"
        task = "multilabel"
    choose(task, get_args(Task), what="task")
    valid = {
        "multiclass": ("logits", "probabilities"),
        "multilabel": ("logits", "sigmoid"),
        "regression": ("values",),
    }[task]
    if outputs not in valid:
        raise ConfigurationError(
            f"A student that gives {_NAMES[outputs]} cannot have task={task!r}. "
            f"Expected student_outputs to be one of: {', '.join(valid)}."
        )
    return task  # type: ignore[return-value]


def pick_for_output(given: Any, model: Any, what: str) -> Any:
    """Returns what is given for a model's only output: itself, or the value under its name.

    Args:
        given: Labels, weights, a loss or metrics; a dict of one of them by the output's name, or,
            for a loss, a list of one.
        model: A tf_keras model with one output.
        what: What is given, for the message.

    Raises:
        ConfigurationError: A dict with other keys.
    """
    if what == "loss" and isinstance(given, list | tuple) and len(given) == 1:
        return given[0]
    if not isinstance(given, Mapping):
        return given
    (name,) = model.output_names
    own = {name, strip_prefix(name)}
    for key in given:
        choose(str(key), own, what=f"output (a key of {what}=)")
    return next(iter(given.values()), None)


_NAMES = {
    "logits": "logits",
    "probabilities": "probabilities",
    "sigmoid": "independent probabilities (sigmoid)",
    "values": "values",
}
