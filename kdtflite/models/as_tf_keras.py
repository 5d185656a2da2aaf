"""Whatever a user hands over as a model, as a tf_keras model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kdtflite.arguments import check_arguments
from kdtflite.errors import UnsupportedModelError
from kdtflite.models.keras3.conversion import from_keras3, is_from_keras3
from kdtflite.models.load import load_model

if TYPE_CHECKING:
    import tf_keras

__all__ = ["as_tf_keras"]

_EXPECTED = (
    "Expected a Keras model (tf_keras or Keras 3), a Distiller, or the path of a .keras or .h5 "
    "file or of a SavedModel folder."
)


@check_arguments
def as_tf_keras(model: Any, *, unsafe: bool = False) -> tf_keras.Model:
    """Returns `model` as a built tf_keras model.

    Every public function that takes a model calls this first, or `as_graph`, which also traces the
    model. A subclassed model stays as it is; so does a model in mixed precision.

    Args:
        model: A tf_keras model, which is returned itself; a Keras 3 model, rebuilt by
            `from_keras3`; a distiller, of which the model it trains is returned; or a path that
            `load_model` takes.
        unsafe: Passed to `load_model`.

    Raises:
        UnsupportedModelError: `model` is something else, is not built, or cannot be rebuilt in
            tf_keras.
        ModelFileError: The file cannot be loaded.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> kdtflite.models.as_tf_keras(model) is model
        True
    """
    if isinstance(model, str | os.PathLike):
        if os.fspath(model).endswith(".tflite"):
            raise _make_unsupported_error(model)
        return load_model(model, unsafe=unsafe)
    # On the type: nothing that the user's own model sets or computes is touched.
    if hasattr(type(model), "trained_model"):
        model = model.trained_model
    if is_from_keras3(model):
        return from_keras3(model)
    import tf_keras as keras

    if not isinstance(model, keras.Model):
        raise _make_unsupported_error(model)
    if not model.built:
        raise UnsupportedModelError(
            f"The model {model.name!r} is not built: its input shape is unknown, so it has no "
            "weights. Call model.build((None, ...)), or start it with keras.Input(...)."
        )
    return model


def _make_unsupported_error(obj: Any) -> UnsupportedModelError:
    from kdtflite.lite.model import LiteModel

    advice = "Pass a model built with tf_keras or Keras 3."
    if isinstance(obj, str | os.PathLike):
        received = f"the .tflite file {os.fspath(obj)!r}"
        advice = "A .tflite file cannot be trained or converted; pass the model it was made from."
    elif isinstance(obj, LiteModel):
        received = "a LiteModel"
        advice = "A LiteModel cannot be trained or converted; pass the model it was made from."
    elif obj is None:
        received = "None"
    elif isinstance(obj, type):
        received = f"the class {obj.__name__}, not an instance of it"
    else:
        received = f"{type(obj).__module__}.{type(obj).__name__}".removeprefix("builtins.")
    if any(base.__module__.split(".")[0] == "torch" for base in type(obj).__mro__):
        advice = "Rebuild a PyTorch module in Keras; its weights can then be copied over."
    return UnsupportedModelError(f"{_EXPECTED} Received: {received}. {advice}")
