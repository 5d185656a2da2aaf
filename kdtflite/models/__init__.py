"""Getting models in: any Keras file or object becomes a `tf_keras` model here, once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Not lazily, because these two modules share their name with their function: importing the module
# later would put it in the function's place. They import no TensorFlow by themselves.
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.from_keras3 import (
    Keras3Conversion,
    convert_keras3,
    from_keras3,
    is_keras3_model,
)

if TYPE_CHECKING:
    from kdtflite.models.inspect import input_shapes, number_of_classes, output_kind
    from kdtflite.models.keras3_callbacks import to_tf_keras_callback
    from kdtflite.models.keras3_objects import (
        to_tf_keras_loss,
        to_tf_keras_metric,
        to_tf_keras_optimizer,
    )
    from kdtflite.models.load import keras_generation, load_model

__all__ = [
    "Keras3Conversion",
    "as_tf_keras",
    "convert_keras3",
    "from_keras3",
    "input_shapes",
    "is_keras3_model",
    "keras_generation",
    "load_model",
    "number_of_classes",
    "output_kind",
    "to_tf_keras_callback",
    "to_tf_keras_loss",
    "to_tf_keras_metric",
    "to_tf_keras_optimizer",
]

# These modules import TensorFlow (2 to 3 s), and this package is imported by the command line's
# help, which must not wait for it.
_HOME = {
    "input_shapes": "inspect",
    "keras_generation": "load",
    "load_model": "load",
    "number_of_classes": "inspect",
    "output_kind": "inspect",
    "to_tf_keras_callback": "keras3_callbacks",
    "to_tf_keras_loss": "keras3_objects",
    "to_tf_keras_metric": "keras3_objects",
    "to_tf_keras_optimizer": "keras3_objects",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
