"""Layers, besides those of `tf_keras.layers`, that a model from Keras 3 may hold.

They are registered, so that a model that uses them can be cloned, saved and loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from kdtflite.models.keras_internals import (
    CustomScaleLayer,
    LayerScale,
    StochasticDepth,
    is_symbolic,
)

__all__ = ["APPLICATION_LAYERS", "Einsum", "einsum"]

# The layers of ConvNeXt and InceptionResNetV2; both generations define them with those nets.
APPLICATION_LAYERS: dict[str, type[keras.layers.Layer]] = {
    "CustomScaleLayer": CustomScaleLayer,
    "LayerScale": LayerScale,
    "StochasticDepth": StochasticDepth,
}

for _kind in (LayerScale, StochasticDepth):  # tf_keras itself registers CustomScaleLayer
    keras.utils.register_keras_serializable(package="kdtflite")(_kind)


@keras.utils.register_keras_serializable(package="kdtflite")
class Einsum(keras.layers.Layer):
    """Computes `tf.einsum` of a list of tensors, and can be cloned and saved.

    The layer that tf_keras itself makes of a call of `tf.einsum` cannot.

    Args:
        subscripts: The equation, as in "bij,bjk->bik".
        constants: Operands that are not inputs, as nested lists by their place in the equation.
    """

    def __init__(
        self, subscripts: str, constants: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.subscripts = subscripts
        self.constants = dict(constants or {})

    def call(self, inputs: Any) -> tf.Tensor:
        """Returns the result of the equation for the tensors `inputs`."""
        operands = tf.nest.flatten(inputs)
        for place in sorted(self.constants, key=int):
            operands.insert(int(place), tf.constant(self.constants[place], operands[0].dtype))
        return tf.einsum(self.subscripts, *operands)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that rebuild the layer."""
        return {
            **super().get_config(),
            "subscripts": self.subscripts,
            "constants": dict(self.constants),
        }


def einsum(subscripts: str, *operands: Any) -> Any:
    """Calls `Einsum` on operands; those that are not symbolic are constants."""
    constants = {
        str(place): np.asarray(operand).tolist()
        for place, operand in enumerate(operands)
        if not is_symbolic(operand)
    }
    tensors = [operand for operand in operands if is_symbolic(operand)]
    return Einsum(subscripts, constants)(tensors)
