"""Mixed samples: MixUp and CutMix, the same for the student and the teacher."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

__all__ = ["Mixed", "Mixing"]


@dataclass(frozen=True)
class Mixed:
    """A mixed batch.

    Attributes:
        inputs: The mixed samples.
        partner: Row of the sample that each was mixed with, shape (batch,), int32.
        share: Share of the sample's own label, shape (batch,), from 0.5 to 1.
    """

    inputs: Any
    partner: tf.Tensor
    share: tf.Tensor

    def partners(self, values: Any) -> Any:
        """Returns each sample's partner's values (labels), or None for None."""
        if values is None:
            return None
        return tf.nest.map_structure(lambda v: tf.gather(v, self.partner), values)

    def mix(self, own: tf.Tensor, partners: tf.Tensor) -> tf.Tensor:
        """Returns losses on the own and the partner's label in the samples' shares."""
        share = tf.reshape(self.share, [-1] + [1] * (own.shape.rank - 1))
        return share * own + (1.0 - share) * partners


class Mixing(abc.ABC):
    """Mixes every sample of a batch with another one."""

    @abc.abstractmethod
    def __call__(self, x: Any) -> Mixed:
        """Returns the mixed batch.

        Args:
            x: Samples, shape (batch, ...), floating.
        """
