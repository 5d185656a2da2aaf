"""The door for models: whatever Keras they come from, a tf_keras model goes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.from_keras3 import from_keras3, is_keras3_model

if TYPE_CHECKING:
    import tf_keras

__all__ = ["as_tf_keras"]


def as_tf_keras(model: Any) -> tf_keras.Model:
    """Returns `model` itself if it is a built tf_keras model, or a Keras 3 model rebuilt as one.

    A subclassed tf_keras model is passed through; `as_functional` traces it.

    Args:
        model: A tf_keras model, or a Keras 3 model as `from_keras3` takes it.

    Raises:
        UnsupportedModelError: `model` is neither, is not built, or cannot be carried over.
    """
    if is_keras3_model(model):
        return from_keras3(model)
    import tf_keras as keras

    if isinstance(model, keras.Model):
        if not model.built:
            raise UnsupportedModelError(
                f"The model {model.name!r} is not built: its input shape is unknown, so it has no "
                "weights. Call model.build((None, ...)), or start it with keras.Input(...)."
            )
        return model
    raise UnsupportedModelError(
        "Expected a Keras model (tf_keras or Keras 3). "
        f"Received: {_described(model)}. {_advice(model)}"
    )


def _described(obj: Any) -> str:
    if obj is None:
        return "None"
    if isinstance(obj, type):
        return f"the class {obj.__name__}, not an instance of it"
    kind = f"{type(obj).__module__}.{type(obj).__name__}".removeprefix("builtins.")
    return f"{kind} {str(obj)!r}" if isinstance(obj, str) or hasattr(obj, "__fspath__") else kind


def _advice(obj: Any) -> str:
    if isinstance(obj, str) or hasattr(obj, "__fspath__"):
        return "Load the file first: kdtflite.models.load_model(path)."
    if any(base.__module__.split(".")[0] == "torch" for base in type(obj).__mro__):
        return "A PyTorch module must be rebuilt in Keras; its weights can then be copied over."
    return "Pass a model built with tf_keras or Keras 3."
