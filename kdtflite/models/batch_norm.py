"""Statistics of batch normalization, estimated anew for weights that are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras_internals import flatten_layers

__all__ = ["find_norms", "lend_momenta", "reestimate_statistics"]


def find_norms(model: keras.Model) -> list[Any]:
    """Returns the layers of a model that keep moving statistics of batches."""
    return [
        layer
        for layer in flatten_layers(model)
        if hasattr(layer, "moving_mean") and isinstance(layer.momentum, float)
    ]


@contextlib.contextmanager
def lend_momenta(norms: list[Any]) -> Iterator[list[tf.Variable]]:
    """Makes the momentum of each layer a variable in the block, which compiled steps read.

    Args:
        norms: Layers of `find_norms`.

    Yields:
        The variables, in the same order, with the layers' own values.
    """
    own = [layer.momentum for layer in norms]
    lent = [tf.Variable(momentum, trainable=False) for momentum in own]
    for layer, variable in zip(norms, lent, strict=True):
        # Past Keras, which would count the variable among the model's weights.
        object.__setattr__(layer, "momentum", variable)
    try:
        yield lent
    finally:
        for layer, momentum in zip(norms, own, strict=True):
            object.__setattr__(layer, "momentum", momentum)


def reestimate_statistics(model: keras.Model, batches: Any, steps: int) -> None:
    """Sets the statistics of batch normalization to their means over batches.

    The moving averages of a training belong to weights that still moved, and not at all to
    averaged weights (Izmailov et al., arXiv 1803.05407, section 3.2). The model runs as in
    training, so that each layer normalizes by its batch; no weight is trained. Ranges of fake
    quantization that move go on moving.

    Args:
        model: The trained model; in the scope of its tf.distribute strategy, if it has one.
        batches: A tf.data.Dataset of batches of samples, or of tuples that begin with them.
        steps: Number of batches to use.
    """
    norms = find_norms(model)
    if not norms:
        return
    with lend_momenta(norms) as momenta:

        def weigh(step: int, logs: Any = None) -> None:
            del logs
            # Batch number n, from 0, counts 1 / (n + 1): the mean of all so far.
            for momentum in momenta:
                momentum.assign(step / (step + 1))

        runner = _ForwardOnly(model)
        runner.compile()
        callback = keras.callbacks.LambdaCallback(on_train_batch_begin=weigh)
        runner.fit(batches, steps_per_epoch=steps, callbacks=[callback], verbose=0)


class _ForwardOnly(keras.Model):
    """Runs a model as in training, without training it; `fit` shares batches among replicas."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def train_step(self, data: Any) -> dict[str, Any]:
        x, *_ = keras.utils.unpack_x_y_sample_weight(data)
        self.model(x, training=True)
        return {}
