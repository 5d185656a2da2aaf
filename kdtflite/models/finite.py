"""The first weight of a model that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kdtflite.models.layer_names import strip_prefix

__all__ = ["describe_first_non_finite"]


def describe_first_non_finite(model: Any) -> str | None:
    """Returns which weight of a model is the first that is not finite; None if all are.

    Layers are visited in the order of the data flow, nested models included. The ranges of fake
    quantization and the statistics of batch normalization are weights too.

    Args:
        model: A built model, tf_keras or Keras 3.

    Example:
        >>> import numpy as np
        >>> import tf_keras as keras
        >>> from kdtflite.models import describe_first_non_finite
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="hidden")])
        >>> describe_first_non_finite(model)
        >>> _ = model.layers[0].bias.assign([0.0, np.nan, 1.0])
        >>> describe_first_non_finite(model)
        "'bias' of the layer 'hidden' (NaN or infinity in 1 of 3 values)"
    """
    for path, weight in _list_weights(model):
        # A variable of several replicas is no array by itself.
        values = np.asarray(weight.numpy() if hasattr(weight, "numpy") else weight)
        if "float" not in values.dtype.name:  # bfloat16 has no kind of its own
            continue
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            name = str(weight.name).split(":")[0].rpartition("/")[2]
            return (
                f"{name!r} of the layer {path!r} (NaN or infinity in {wrong} of "
                f"{values.size} value{'s' if values.size != 1 else ''})"
            )
    return None


def _list_weights(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path of the layer and the weight, for every weight."""
    for layer in model.layers:
        path = prefix + strip_prefix(layer.name)
        if hasattr(layer, "layers"):
            yield from _list_weights(layer, f"{path}/")
        else:
            yield from ((path, weight) for weight in layer.weights)
    # What a subclassed model holds beside its layers comes last.
    yield from ((prefix.rstrip("/") or model.name, weight) for weight in model.weights)
