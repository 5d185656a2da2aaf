"""The embeddings of the last samples seen, for contrastive losses."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["EmbeddingBank"]


class EmbeddingBank:
    """A queue of the student's and the teacher's embeddings of the last samples, and their classes.

    The newest is last; when the bank is full, the oldest leave. Under a distribution strategy
    every replica fills its own bank, and checkpoints keep that of the first.

    Args:
        size: How many samples it keeps.
        embedding: Width of the embeddings.
    """

    def __init__(self, size: int, embedding: int) -> None:
        self.size = size
        self._embeddings = _make_variable(tf.zeros([2, size, embedding]), "embeddings")
        # float64 holds every plausible class index, and NaN, which equals none.
        self._classes = _make_variable(
            tf.fill([size], tf.constant(float("nan"), tf.float64)), "classes"
        )
        self._filled = _make_variable(tf.zeros([], tf.int32), "filled")

    @property
    def variables(self) -> list[tf.Variable]:
        """The variables of the bank."""
        return [self._embeddings, self._classes, self._filled]

    def add(
        self, student: tf.Tensor, teacher: tf.Tensor, classes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Adds a batch, without its gradient.

        Args:
            student: The student's embeddings, shape (batch, embedding), float32.
            teacher: The teacher's.
            classes: Class of each sample, shape (batch,), float64; NaN for no class.

        Returns:
            The student's and the teacher's embeddings in the bank, shape (size, embedding), and
            which of them are negatives for each sample of the batch, shape (batch, size), bool:
            those of another class, and never the sample itself or a free slot.
        """
        batch = tf.shape(classes)[0]
        new = tf.stop_gradient(tf.stack([student, teacher]))
        embeddings = tf.concat([self._embeddings, new], axis=1)[:, -self.size :]
        remembered = tf.concat([self._classes, classes], axis=0)[-self.size :]
        filled = tf.minimum(tf.convert_to_tensor(self._filled) + batch, self.size)
        self._embeddings.assign(embeddings)
        self._classes.assign(remembered)
        self._filled.assign(filled)

        places = tf.range(self.size)
        own = self.size - batch + tf.range(batch)  # negative: no longer in the bank
        negatives = (
            (places >= self.size - filled)[None, :]
            & (places[None, :] != own[:, None])
            & (remembered[None, :] != classes[:, None])
        )
        return embeddings[0], embeddings[1], negatives


def _make_variable(initial: tf.Tensor, name: str) -> tf.Variable:
    return tf.Variable(
        initial,
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        name=name,
    )
