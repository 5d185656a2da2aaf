"""Several teachers as one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from kdtflite.distillation.outputs import Outputs, Task
from kdtflite.distillation.step import Observed
from kdtflite.distillation.teachers.base import Shape, Teacher, observe_function
from kdtflite.distillation.teachers.resolve import as_teacher
from kdtflite.errors import ConfigurationError, ShapeMismatchError, choose

__all__ = ["EnsembleTeacher", "How"]

How = Literal["mean", "weighted", "class_confidence", "sample_confidence", "random"]

# Added to an entropy, in nats, before its inverse: bounds the weight of a teacher that is sure.
_SURE = 1e-3
_GIVES: dict[Task, Outputs] = {
    "multiclass": "probabilities",
    "multilabel": "sigmoid",
    "regression": "values",
}


class EnsembleTeacher(Teacher):
    """Several teachers whose probabilities are averaged: a mixture.

        p(c | x) ∝ Σₖ wₖ(x, c) · softmax(zₖ(x) / T)_c,    logits = T · log p

    Probabilities are averaged (You et al., "Learning from Multiple Teacher Networks", KDD 2017;
    Hinton et al., arXiv 1503.02531), in log space. If the loss has a temperature, pass it here too:
    then its target is exactly the mean of the teachers' softened probabilities. For yes-or-no
    labels the probabilities are the sigmoid's; for regression the values themselves are averaged.

    The weights:
        - "mean": wₖ = 1/K.
        - "weighted": wₖ = `weights[k]`, for better and worse teachers.
        - "class_confidence": wₖ = `weights[k, c]`, for example each teacher's recall on each class,
          measured on validation data.
        - "sample_confidence": wₖ(x) ∝ 1 / (H(pₖ(x)) + 0.001), H the entropy in nats: a teacher
          that is sure of a sample counts more. (CA-MKD, arXiv 2201.00007, weights by each teacher's
          cross-entropy with the label. Teachers are not shown labels here; the entropy is what a
          teacher expects its cross-entropy to be.) Each position of a sequence and each yes-or-no
          label has its own weights.
        - "random": one teacher per batch, all equally often, and only that one is run. The draws
          are those of tf.random.uniform(seed=seed). No checkpoint keeps their state, so a resumed
          training starts them anew.

    Args:
        teachers: Anything `Distiller` takes as a teacher: models, Teachers, paths, functions.
        how: One of the above.
        weights: Not negative; shape (teachers,) for "weighted", (teachers, classes) for
            "class_confidence". They are normalized over the teachers.
        temperature: T.
        task: "multiclass", "multilabel", "regression", or "auto" to infer it from the teachers'
            outputs; several outputs that are all logits count as classes of one decision.
        seed: Seed of "random".
        name: For messages.

    Raises:
        ConfigurationError: There are no teachers, one is a cache, their tasks differ, or the
            weights make no sense.
        ShapeMismatchError: From `output_shape`: the numbers of classes differ.

    Example:
        >>> import numpy as np
        >>> from kdtflite.teachers import CallableTeacher, EnsembleTeacher
        >>> sure = CallableTeacher(lambda x: [[4.0, 0.0]] * len(x), output_shape=2)
        >>> unsure = CallableTeacher(lambda x: [[0.0, 0.0]] * len(x), output_shape=2)
        >>> both = EnsembleTeacher([sure, unsure], how="weighted", weights=[3, 1])
        >>> both(np.ones((1, 5))).numpy().round(3)
        array([[-0.149, -1.977]], dtype=float32)
    """

    def __init__(
        self,
        teachers: Sequence[Any],
        *,
        how: How = "mean",
        weights: ArrayLike | None = None,
        temperature: float = 1.0,
        task: str = "auto",
        seed: int = 0,
        name: str = "ensemble",
    ) -> None:
        if not teachers:
            raise ConfigurationError("Expected one or more teachers. Received: none.")
        if temperature <= 0:
            raise ConfigurationError(f"Expected a temperature above 0. Received: {temperature}.")
        self.name = name
        self.teachers = [as_teacher(teacher) for teacher in teachers]
        if any(teacher.own_batches for teacher in self.teachers):
            raise ConfigurationError(
                "A teacher cache cannot be one of several teachers, since it only teaches on its "
                "own batches. Cache them together: cache_teacher([first, second], ...)."
            )
        self.how = choose(how, get_args(How), what="way to combine teachers")
        self.weights = _check_weights(weights, how, len(self.teachers))
        self.temperature = temperature
        self.seed = seed
        self.task = _infer_task(self.teachers, task)
        self.outputs = _GIVES[self.task]
        if self.task == "regression" and how == "sample_confidence":
            raise ConfigurationError(
                'Teachers of values do not show how sure they are. Pass how="mean" or "weighted".'
            )
        self.may_vary = any(teacher.may_vary for teacher in self.teachers)
        self.runs_python = any(teacher.runs_python for teacher in self.teachers)
        self.differentiable = all(  # of this instance
            teacher.differentiable for teacher in self.teachers
        )

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, ..., classes), for the student's inputs `x`."""
        return self.observe(x).logits

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:  # noqa: D102
        return observe_function(lambda x: self._compute_logits(x, recording), x, recording)

    def check_repeats(self, x: Any) -> None:  # noqa: D102
        for teacher in self.teachers:
            teacher.check_repeats(x)

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless every teacher takes what the student takes."""
        for teacher in self.teachers:
            teacher.check_inputs(student)

    @property
    def output_shape(self) -> Shape:
        """Shape of the logits, batch first.

        Raises:
            ShapeMismatchError: The teachers' shapes differ, or the weights have other classes.
        """
        shapes = [tuple(teacher.output_shape) for teacher in self.teachers]
        merged = tf.TensorShape(shapes[0])
        for teacher, shape in zip(self.teachers, shapes, strict=True):
            if not merged.is_compatible_with(shape):
                raise ShapeMismatchError(
                    "Expected teachers of one ensemble to give the same shape. Received: "
                    f"{self.teachers[0].name!r} {shapes[0]}, {teacher.name!r} {shape}."
                )
            merged = merged.merge_with(shape)
        if self.weights is not None and self.weights.ndim == 2:
            classes = self.weights.shape[1]
            if merged[-1] not in (None, classes):
                raise ShapeMismatchError(
                    f"Expected weights of shape ({len(shapes)}, {merged[-1]}), one row per teacher "
                    f"and one column per class. Received: {self.weights.shape}."
                )
        return tuple(merged)

    @output_shape.setter
    def output_shape(self, shape: Shape) -> None:
        raise AttributeError("An ensemble has the output shape of its teachers.")

    def fingerprint(self) -> str:  # noqa: D102
        weights = None if self.weights is None else self.weights.tolist()
        parts = [self.how, self.task, self.temperature, self.seed, weights]
        parts += [teacher.fingerprint() for teacher in self.teachers]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _compute_logits(self, x: Any, recording: contextlib.ExitStack | None) -> tf.Tensor:
        def ask(teacher: Teacher) -> tf.Tensor:
            return teacher.observe(x, recording).logits

        if self.how != "random":
            return self._combine(tf.stack([ask(teacher) for teacher in self.teachers]))
        count = len(self.teachers)
        drawn = tf.random.uniform([], maxval=count, dtype=tf.int32, seed=self.seed)
        if recording is not None:
            # A tape opened inside a branch cannot be read outside it.
            return tf.gather([ask(teacher) for teacher in self.teachers], drawn)
        return tf.switch_case(drawn, [lambda t=t: ask(t) for t in self.teachers])

    def _combine(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the logits of the mixture, from shape (teachers, batch, ..., classes)."""
        if self.task == "regression":
            return tf.reduce_sum(tf.exp(self._compute_log_weights(logits)) * logits, axis=0)
        z = logits / self.temperature
        if self.task == "multiclass":
            logs = tf.nn.log_softmax(z)
            entropy = -tf.reduce_sum(tf.exp(logs) * logs, axis=-1, keepdims=True)
            mixed = tf.reduce_logsumexp(logs + self._compute_log_weights(z, entropy), axis=0)
        else:
            yes, no = tf.math.log_sigmoid(z), tf.math.log_sigmoid(-z)
            entropy = -tf.exp(yes) * yes - tf.exp(no) * no
            weights = self._compute_log_weights(z, entropy)
            mixed = tf.reduce_logsumexp(yes + weights, axis=0)
            mixed -= tf.reduce_logsumexp(no + weights, axis=0)
        return self.temperature * mixed

    def _compute_log_weights(self, logits: tf.Tensor, entropy: Any = None) -> tf.Tensor:
        """Returns log w, normalized over the teachers, in a shape that broadcasts with `logits`."""
        if self.how == "sample_confidence":
            return tf.nn.log_softmax(-tf.math.log(entropy + _SURE), axis=0)
        weights = np.ones(len(self.teachers)) if self.weights is None else self.weights
        with np.errstate(divide="ignore"):  # a weight of 0 is -inf, which logsumexp leaves out
            logs = np.log(weights / weights.sum(axis=0)).astype(np.float32)
        between = [1] * (logits.shape.rank - (1 if logs.ndim == 1 else 2))
        return tf.constant(logs.reshape([len(logs), *between, *logs.shape[1:]]))


def _check_weights(given: ArrayLike | None, how: str, teachers: int) -> np.ndarray[Any, Any] | None:
    axes = {"weighted": 1, "class_confidence": 2}.get(how)
    if axes is None:
        if given is not None:
            raise ConfigurationError(
                f'how="{how}" takes no weights=. Pass how="weighted" or how="class_confidence".'
            )
        return None
    wanted = f"({teachers},)" if axes == 1 else f"({teachers}, classes)"
    if given is None:
        raise ConfigurationError(f'how="{how}" needs weights=, shape {wanted}.')
    weights = np.asarray(given, np.float64)
    if weights.ndim != axes or len(weights) != teachers:
        raise ConfigurationError(
            f'Expected weights of shape {wanted} with how="{how}". Received: {weights.shape}.'
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or (weights.sum(axis=0) <= 0).any():
        raise ConfigurationError(
            "Expected weights of at least 0, with one above 0 among the teachers"
            f"{' for every class' if axes == 2 else ''}. Received: {weights.tolist()}."
        )
    return weights


def _infer_task(teachers: Sequence[Teacher], task: str) -> Task:
    given = {teacher.outputs for teacher in teachers} - {"logits"}
    if len(given) > 1:
        named = ", ".join(f"{teacher.name!r} {teacher.outputs}" for teacher in teachers)
        raise ConfigurationError(
            f"Expected teachers of one ensemble to have the same task. Received: {named}. Pass "
            "outputs= to those where this is wrong."
        )
    if task == "auto":
        if given:
            return next(t for t, kind in _GIVES.items() if kind in given)
        return "multilabel" if 1 in _list_known_classes(teachers) else "multiclass"
    choose(task, get_args(Task), what="task")
    decided: Task = task  # type: ignore[assignment]
    if given - {_GIVES[decided]}:
        raise ConfigurationError(
            f"task={task!r} cannot be taught by teachers that give {', '.join(given)}. Expected "
            f"logits or {_GIVES[decided]}."
        )
    return decided


def _list_known_classes(teachers: Sequence[Teacher]) -> set[int | None]:
    found = set()
    for teacher in teachers:
        with contextlib.suppress(ConfigurationError):  # learned by a probe, later
            found.add(teacher.output_shape[-1])
    return found
