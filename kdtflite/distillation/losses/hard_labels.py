"""The hard-label term: the loss the user compiled, one value a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.errors import ConfigurationError

__all__ = ["HardLabels"]


class HardLabels:
    """The user's own loss on the true labels, before any reduction.

    Keras reduces a compiled loss to one number a replica, which weighs a sample in a small last
    batch more than one in a full batch; the Distiller therefore reduces all terms alike.

    Args:
        loss: What `compile(loss=...)` takes: a name, a function or a `tf_keras` Loss.

    Raises:
        ConfigurationError: No such loss, or one with `reduction="sum"`.
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
        reduction = getattr(self.loss, "reduction", None)
        if reduction == keras.losses.Reduction.SUM:
            raise ConfigurationError(
                f"The loss {self.loss.name!r} sums over the batch, so its size would depend on "
                "the batch size, unlike the distillation terms it is mixed with. "
                "Leave out reduction=, and scale by hard_label_weight instead."
            )

    def __call__(self, labels: Any, predictions: Any) -> tf.Tensor:
        """Returns the loss of each sample, shape (batch,), float32, or (batch, positions).

        Args:
            labels: As the loss takes them: class indices or values of a single output, shape
                (batch,) or (batch, 1), or a row a sample, shape (batch, classes).
            predictions: The student's output, shape (batch, ..., classes).
        """
        # Loss.call is the unreduced loss; Loss.__call__ would reduce.
        function = self.loss.call if isinstance(self.loss, keras.losses.Loss) else self.loss
        predictions = tf.cast(predictions, tf.float32)
        labels = _like(predictions, labels)
        values = tf.cast(function(labels, predictions), tf.float32)
        batch = tf.shape(predictions)[0]
        positions = tf.reshape(values, [batch, tf.size(values) // tf.maximum(batch, 1)])
        # A sequence has a value a position. Else what is left is a loss without a class axis to
        # sum over.
        return positions if predictions.shape.rank > 2 else tf.reduce_mean(positions, axis=1)

    def reads_logits(self) -> bool | None:
        """Whether the loss takes logits; None where it does not say (most are not about it)."""
        if self.function not in _CROSS_ENTROPIES:
            return None
        return bool(self.arguments.get("from_logits", False))

    @property
    def function(self) -> str:
        """Name of Keras' own function that computes the loss; "" for a user's own."""
        function = getattr(self.loss, "fn", self.loss)
        ours = getattr(function, "__module__", "").startswith("tf_keras.")
        return getattr(function, "__name__", "") if ours else ""

    @property
    def arguments(self) -> dict[str, Any]:
        """What that function was given, as ignore_class; empty where it is Keras' default."""
        return dict(getattr(self.loss, "_fn_kwargs", {}))


def _like(predictions: tf.Tensor, labels: Any) -> Any:
    """Returns labels as Keras hands them to a loss: of the predictions' rank and float dtype."""
    if not isinstance(labels, tf.Tensor | np.ndarray | list):
        return labels
    labels = tf.convert_to_tensor(labels)
    # Else a loss that subtracts would broadcast (batch,) and (batch, 1) to (batch, batch).
    if labels.shape.rank == 1 and predictions.shape.rank == 2:
        labels = labels[:, tf.newaxis]
    return tf.cast(labels, predictions.dtype) if labels.dtype.is_floating else labels


_CROSS_ENTROPIES = (
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "binary_crossentropy",
    "binary_focal_crossentropy",
)
