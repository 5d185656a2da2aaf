"""The hard-label term: the compiled loss, one value per sample."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.distillation.reduction import average_positions, expand_to_rank, leave_out
from kdtflite.errors import ConfigurationError
from kdtflite.models.keras_internals import get_function_arguments, get_mask, set_mask

__all__ = ["HardLabels"]


class HardLabels:
    """The user's own loss on the true labels, before any reduction.

    Keras reduces a compiled loss to one number per replica, so that a sample in a small last batch
    weighs more than one in a full batch. The Distiller therefore reduces all terms itself.

    Args:
        loss: What `compile(loss=...)` takes: a name, a function or a `tf_keras` Loss.

    Raises:
        ConfigurationError: There is no such loss, or it has `reduction="sum"`.
    """

    name = "hard_labels"

    def __init__(self, loss: Any) -> None:
        try:
            self.loss = keras.losses.get(loss)
        except ValueError as error:
            raise ConfigurationError(
                f"Expected the name of a Keras loss, a function or a tf_keras Loss. "
                f"Received: loss={loss!r}."
            ) from error
        self.is_single = False  # whether it was found to give one number for a batch
        reduction = getattr(self.loss, "reduction", None)
        if reduction == keras.losses.Reduction.SUM:
            raise ConfigurationError(
                f"The loss {self.describe()} sums over the batch, so its size would depend on "
                "the batch size, unlike the distillation terms it is mixed with. "
                "Leave out reduction=, and scale by hard_label_weight instead."
            )

    def __call__(self, labels: Any, predictions: Any, rows: Any = None) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32, or (batch, ...) of positions.

        Positions that the predictions' mask or the loss (`ignore_class`) leaves out are zero, and
        the others are scaled so that the mean is Keras' own. The values carry the mask of both.

        Args:
            labels: As the loss takes them: class indices or values of a single output, shape
                (batch,) or (batch, 1), or one row per sample, shape (batch, classes).
            predictions: The student's output, shape (batch, ..., classes).
            rows: Which samples have a label, shape (batch,); None for all.

        Raises:
            ConfigurationError: The loss gives one number for the batch, and some rows do not count.
        """
        # Loss.call is the unreduced loss; Loss.__call__ would reduce.
        function = self.loss.call if isinstance(self.loss, keras.losses.Loss) else self.loss
        mask = get_mask(predictions)
        predictions = tf.cast(predictions, tf.float32)
        given = function(_match_rank(predictions, labels, self.loss), predictions)
        values = tf.cast(given, tf.float32)
        self.is_single = not _has_samples(values, predictions)
        if self.is_single:
            if rows is not None:
                raise ConfigurationError(_SINGLE.format(self.describe(), "leave out some samples"))
            return tf.fill([tf.shape(predictions)[0]], tf.reduce_mean(values))
        masks = [part for part in (mask, get_mask(given)) if part is not None]
        masks = [part for part in masks if part.shape.rank <= values.shape.rank]
        masks = [expand_to_rank(tf.cast(part, tf.bool), values) for part in masks]
        counted = functools.reduce(tf.logical_and, masks) if masks else None
        weighed = counted
        if rows is not None:
            rows = expand_to_rank(rows, values)
            weighed = rows if counted is None else rows & counted
        if weighed is not None:
            values = leave_out(values, weighed)
        if predictions.shape.rank <= 2:
            # Axes that are left come from a loss that does not sum over the classes.
            values = average_positions(values)
            counted = None if counted is None or counted.shape.rank > 1 else counted
        if counted is not None:
            set_mask(values, counted)
        return values

    def check_weights(self, sample_weight: Any) -> None:
        """Raises ConfigurationError if the loss gave one number, which weights cannot weigh."""
        if self.is_single and sample_weight is not None:
            raise ConfigurationError(_SINGLE.format(self.describe(), "be weighed by sample"))

    def describe(self) -> str:
        """Returns the name of the loss, for messages."""
        kind = type(self.loss)
        own = getattr(self.loss, "__name__", None) or getattr(self.loss, "name", None)
        return str(own if kind.__name__ in ("function", "LossFunctionWrapper") else kind.__name__)

    def reads_logits(self) -> bool | None:
        """Returns whether the loss takes logits, or None where it does not say."""
        if self.function not in _CROSS_ENTROPIES:
            return None
        return bool(self.arguments.get("from_logits", False))

    @property
    def function(self) -> str:
        """Name of Keras' own function that computes the loss; "" for a user's own."""
        function = getattr(self.loss, "fn", self.loss)
        ours = str(getattr(function, "__module__", "")).startswith("tf_keras.")
        return getattr(function, "__name__", "") if ours else ""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of that function, such as ignore_class; empty for Keras' defaults."""
        return get_function_arguments(self.loss)


def _has_samples(values: tf.Tensor, predictions: tf.Tensor) -> bool:
    """Whether a loss gave a value per sample; else it has reduced the batch itself."""
    if values.shape.rank is None:
        return True
    # A known number of values for an open number of samples belongs to something else: classes.
    return values.shape.rank > 0 and (
        values.shape[0] is None or values.shape[0] == predictions.shape[0]
    )


def _match_rank(predictions: tf.Tensor, labels: Any, loss: Any) -> Any:
    """Returns labels as Keras hands them to a loss: of the predictions' rank and float dtype."""
    if not isinstance(labels, tf.Tensor | np.ndarray | list):
        return labels
    labels = tf.convert_to_tensor(labels)
    # Otherwise a loss that subtracts would broadcast (batch,) and (batch, 1) to (batch, batch).
    # Of maps, Keras drops the outputs' axis instead, which leaves no value per position.
    plain = not isinstance(loss, keras.losses.Loss) or hasattr(loss, "fn")
    lacks = labels.shape.rank is not None and labels.shape.rank + 1 == predictions.shape.rank
    if lacks and (labels.shape.rank == 1 or (plain and predictions.shape[-1] == 1)):
        labels = labels[..., tf.newaxis]
    return tf.cast(labels, predictions.dtype) if labels.dtype.is_floating else labels


_SINGLE = (
    "The loss {} gives one number for a whole batch, which cannot {}. Expected one value per "
    "sample: let the function reduce over the last axis only."
)
_CROSS_ENTROPIES = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
)
