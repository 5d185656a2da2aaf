"""The variables of losses, for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

__all__ = ["LossState"]


class LossState(tf.__internal__.tracking.AutoTrackable):
    """Variables that checkpoints keep and that Keras does not count as a model's weights.

    Args:
        variables: Those of adapters and memory banks.
    """

    def __init__(self, variables: Sequence[tf.Variable]) -> None:
        super().__init__()
        self.variables = list(variables)
