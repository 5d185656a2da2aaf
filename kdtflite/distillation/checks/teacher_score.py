"""Says how often a teacher is right on the first training batches, from the steps themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.outputs import Task
from kdtflite.distillation.reduction import expand_to_rank
from kdtflite.distillation.step import CachedBatch, Step
from kdtflite.progress import say

__all__ = ["ReportTeachers", "TeacherScore", "draw_batch"]

_BATCHES = 8  # of a training that are reported on
_ROWS = 8  # shown to a teacher to compare its answers
_GOOD = 0.95


class TeacherScore:
    """How often a teacher is right, measured in the training step that asks it anyway.

    Args:
        task: What it decides. For a regression the mean squared error is measured.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        # No metric of the distiller: it would be reset and reported in every epoch.
        self.mean = keras.metrics.Mean(name="teacher_score")

    def update(self, step: Step) -> None:
        """Counts one batch; labels that cannot be compared are left out.

        Args:
            step: What student and teacher gave, and the labels.
        """
        labels = step.labels
        numbers = isinstance(labels, tf.Tensor) and (
            labels.dtype.is_floating or labels.dtype.is_integer
        )
        if not numbers or None in (labels.shape.rank, step.teacher.logits.shape.rank):
            return
        measure = _measure_values if self.task == "regression" else _measure_decisions
        found = measure(step.teacher.logits, labels, self.task)
        if found is None:
            return
        values, known = found
        if step.counted is not None and step.counted.shape.rank <= known.shape.rank:
            known &= expand_to_rank(step.counted, known)
        # Flat: of shapes that are not known before the step, Keras would squeeze the weights.
        flat = tf.reshape(values, [-1]), tf.reshape(tf.cast(known, tf.float32), [-1])
        self.mean.update_state(*flat)

    def describe(self, name: str) -> str | None:
        """Returns the score as a sentence, or None without a comparison.

        Args:
            name: Name of the teacher.
        """
        count = int(tf.convert_to_tensor(self.mean.count))
        if not count:
            return None
        score = float(self.mean.result())
        if self.task == "regression":
            return (
                f"The teacher {name!r} has a mean squared error of {score:.4g} on the first "
                f"{count} training values."
            )
        said = f"The teacher {name!r} is right on {score:.1%} of the first {count} training labels."
        if score >= _GOOD:
            return said
        return (
            f"{said} If it should be better, look at its inputs: teacher_preprocessing= turns the "
            "student's into those that it was trained on."
        )


class ReportTeachers(keras.callbacks.Callback):
    """Prints how often each teacher was right, once, after the first batches of a training.

    Args:
        scores: Name of a teacher and its score, for each.
    """

    # Keras would otherwise copy every metric to the host after every step.
    _supports_tf_logs = True

    def __init__(self, scores: Iterable[tuple[str, TeacherScore]]) -> None:
        super().__init__()
        self.scores = list(scores)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reports after some batches."""
        del logs
        if batch + 1 >= _BATCHES:
            self._report()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Reports after an epoch of fewer batches."""
        del epoch, logs
        self._report()

    def _report(self) -> None:
        scores, self.scores = self.scores, []
        for name, score in scores:
            if said := score.describe(name):
                say(said)


def draw_batch(x: Any) -> Any:
    """Returns a few samples like those that `fit` is given, or None if it cannot make any.

    Of a tf.data.Dataset only the shapes are read, since reading a batch would change a shuffled
    order; the values are random.

    Args:
        x: What `fit` was given as x.
    """
    if isinstance(x, tf.data.Dataset):
        specs, _, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
        return None if isinstance(specs, CachedBatch) else _draw_like(specs)
    if isinstance(x, keras.utils.Sequence):
        x = keras.utils.unpack_x_y_sample_weight(x[0])[0] if len(x) else None
    leaves = tf.nest.flatten(x)
    if x is None or not all(hasattr(part, "shape") and len(part.shape) for part in leaves):
        return None
    rows = tf.nest.map_structure(lambda part: tf.convert_to_tensor(part[:_ROWS]), x)
    return tuple(rows) if isinstance(rows, list) else rows  # as tf.data gives several inputs


def _draw_like(specs: Any) -> Any:
    leaves = tf.nest.flatten(specs)
    if not all(isinstance(spec, tf.TensorSpec) and spec.shape.rank for spec in leaves):
        return None
    if any(None in spec.shape[1:] for spec in leaves) or any(
        not (spec.dtype.is_floating or spec.dtype.is_integer) for spec in leaves
    ):
        return None
    random = np.random.default_rng(0)

    def draw(spec: tf.TensorSpec) -> tf.Tensor:
        shape = (_ROWS, *spec.shape[1:])
        # Whole numbers may be tokens, of which 0 is in every vocabulary.
        values = random.uniform(size=shape) if spec.dtype.is_floating else np.zeros(shape)
        return tf.cast(values, spec.dtype)

    return tf.nest.map_structure(draw, specs)


def _measure_values(logits: tf.Tensor, labels: tf.Tensor, task: Task) -> Any:
    """Returns squared errors, and that all count; None for labels of another shape."""
    del task
    if labels.shape.rank == logits.shape.rank - 1 and logits.shape[-1] == 1:
        labels = labels[..., tf.newaxis]
    if not labels.shape.is_compatible_with(logits.shape):
        return None
    errors = tf.square(logits - tf.cast(labels, logits.dtype))
    return errors, tf.ones_like(errors, tf.bool)


def _measure_decisions(logits: tf.Tensor, labels: tf.Tensor, task: Task) -> Any:
    """Returns which decisions are right, and which have a label; None for other shapes."""
    rank, classes = logits.shape.rank, logits.shape[-1]
    if task == "multilabel":
        known = (labels >= 0) & (labels <= 1)
        labels = tf.cast(labels > tf.cast(0.5, labels.dtype), tf.int32)
        if labels.shape.rank == rank - 2 and logits.shape[-2] == 1:
            labels, known = labels[..., tf.newaxis], known[..., tf.newaxis]
    elif labels.shape.rank == rank and labels.shape[-1] == classes:
        known = tf.reduce_all(labels >= 0, axis=-1)
        labels = tf.argmax(labels, axis=-1, output_type=tf.int32)
    else:
        if labels.shape.rank == rank and labels.shape[-1] == 1:
            labels = tf.squeeze(labels, axis=-1)
        labels = tf.cast(labels, tf.int32)
        known = (labels >= 0) & (labels < classes)
    if not labels.shape.is_compatible_with(logits.shape[:-1]):
        return None
    right = tf.argmax(logits, axis=-1, output_type=tf.int32) == labels
    return tf.cast(right, tf.float32), known
