"""What the user calls the layers of a quantization-aware model, which is made of other layers."""

from __future__ import annotations

import tf_keras as keras

from kdtflite.evaluation.layers.names import layer_name

__all__ = ["user_names"]

# Ends of the names of the image that stands for a layer's sequence, or vector.
_IMAGES = frozenset({"", "row", "point"})


def user_names(model: keras.Model) -> dict[str, str]:
    """Returns what the user calls the layers of a model, by name, where it is something else.

    `quantize_aware` opens nested models and takes layers apart. The user's layer is named by its
    path, "backbone/conv", a part of it by that and the part, "attention (scores)". A model loaded
    from a file no longer knows the layers it was made of: of those only the endings of images of
    sequences ("conv_row") are taken away.
    """
    quantization = getattr(model, "quantization", None)
    if quantization is None:
        return {}
    origin: dict[str, str] = quantization.origin
    names = {layer_name(layer.name) for layer in model.layers}
    if not origin:
        kinds = {layer.name: layer for layer in model.layers}
        found = {}
        for name in names:
            base, _, part = name.rpartition("_")
            reshapes = isinstance(kinds.get(base), keras.layers.Reshape)
            if base and part in _IMAGES and (base not in names or reshapes):
                found[name] = base
        return found
    return {name: _shown(name, path) for name, path in origin.items() if name in names}


def _shown(name: str, path: str) -> str:
    part = name.removeprefix(path.rpartition("/")[2]).strip("_")
    return path if part in _IMAGES else f"{path} ({part})"
