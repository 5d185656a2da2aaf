"""Layers that a model carried over from Keras 3 may hold beside those of `tf_keras.layers`.

All are registered, so a model that uses them can be cloned, saved and loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.applications.inception_resnet_v2 import CustomScaleLayer

__all__ = ["APPLICATION_LAYERS", "Einsum", "einsum"]

# ConvNeXt's and InceptionResNetV2's own layers: both generations define them beside the nets.
APPLICATION_LAYERS: dict[str, type[keras.layers.Layer]] = {
    "CustomScaleLayer": CustomScaleLayer,
    "LayerScale": LayerScale,
    "StochasticDepth": StochasticDepth,
}

for _kind in (LayerScale, StochasticDepth):  # tf_keras registers CustomScaleLayer itself
    keras.utils.register_keras_serializable(package="kdtflite")(_kind)


@keras.utils.register_keras_serializable(package="kdtflite")
class Einsum(keras.layers.Layer):
    """`tf.einsum` of a list of tensors: what tf_keras makes of that call cannot be cloned or saved.

    Args:
        subscripts: The equation, as in "bij,bjk->bik".
        constants: Operands that are no inputs, as nested lists by their place in the equation.
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
        """Returns what rebuilds the layer."""
        return {
            **super().get_config(),
            "subscripts": self.subscripts,
            "constants": dict(self.constants),
        }


def einsum(subscripts: str, *operands: Any) -> Any:
    """Calls `Einsum` on operands of which some are symbolic; the others are constants."""
    constants = {
        str(place): np.asarray(operand).tolist()
        for place, operand in enumerate(operands)
        if not hasattr(operand, "_keras_history")
    }
    tensors = [operand for operand in operands if hasattr(operand, "_keras_history")]
    return Einsum(subscripts, constants)(tensors)
