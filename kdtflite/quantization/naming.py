"""What the user calls the layers that a quantization-aware model is made of."""

from __future__ import annotations

import tf_keras as keras

from kdtflite.quantization.wrapping import PREFIX

__all__ = ["origins", "user_names"]

# Ends of the names of the image that stands for a layer's sequence, or vector.
_IMAGES = frozenset({"row", "point"})


def origins(model: keras.Model) -> dict[str, str]:
    """Returns the path of the user's layer ("outer/inner") by the name of each layer made of it.

    A model loaded from a file no longer knows the layers it was made of: of those only the
    endings of images of sequences ("conv_row") are taken away.
    """
    quantization = getattr(model, "quantization", None)
    if quantization is None:
        return {}
    layers = {layer.name.removeprefix(PREFIX): layer for layer in model.layers}
    if quantization.origin:
        return {name: path for name, path in quantization.origin.items() if name in layers}
    found = {}
    for name in layers:
        base, _, part = name.rpartition("_")
        # The layer's own name is that of the sequence behind the image, where there is one.
        if base and part in _IMAGES and isinstance(layers.get(base), keras.layers.Reshape | None):
            found[name] = base
    return found


def user_names(model: keras.Model) -> dict[str, str]:
    """Returns what to call the layers of a model, by name, where it is something else.

    The user's layer goes by its path, "backbone/conv", a part of it by that and the part,
    "attention (scores)".
    """
    return {name: _shown(name, path) for name, path in origins(model).items()}


def _shown(name: str, path: str) -> str:
    part = name.removeprefix(path.rpartition("/")[2]).strip("_")
    return f"{path} ({part})" if part and part not in _IMAGES else path
