"""The names of the layers in a quantization-aware model, and the user's names behind them.

`quantize_aware` puts "quant_" before the name of each layer that it wraps, and "_row" or "_point"
after the name of a layer whose sequence or vector it computes as an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tf_keras as keras

__all__ = [
    "add_prefix",
    "find_image_axes",
    "find_origins",
    "find_user_names",
    "list_possible_names",
    "name_image",
    "strip_prefix",
]

_PREFIX = "quant_"
# The axes that the image has in addition: (batch, 1, steps, channels), (batch, 1, 1, channels).
_IMAGE_AXES: dict[str, tuple[int, ...]] = {"row": (1,), "point": (1, 2)}


def add_prefix(name: str) -> str:
    """Returns the name of what gives the fake-quantized output of the layer `name`.

    Example:
        >>> add_prefix("conv")
        'quant_conv'
    """
    return _PREFIX + name


def strip_prefix(path: str) -> str:
    """Returns the name that a layer had before it was wrapped, for a path each of its names.

    Example:
        >>> strip_prefix("backbone/quant_conv")
        'backbone/conv'
    """
    return "/".join(part.removeprefix(_PREFIX) for part in path.split("/"))


def name_image(rank: int) -> str:
    """Returns the suffix of the layer that gives an output of this rank as an image.

    A sequence (batch, steps, channels) becomes a row (batch, 1, steps, channels), a vector
    (batch, channels) a point (batch, 1, 1, channels). The plain name belongs to the layer that
    gives the output in its own rank.

    Example:
        >>> name_image(3), name_image(2), name_image(4)
        ('row', 'point', '')
    """
    return {2: "point", 3: "row", 4: ""}[rank]


def find_image_axes(name: str, asked: str) -> tuple[int, ...]:
    """Returns the axes that a layer's output has only because it is an image.

    Args:
        name: The layer's name.
        asked: The name by which the user asked for it; one that ends in the suffix means the image.

    Example:
        >>> find_image_axes("quant_conv_row", "conv"), find_image_axes("quant_conv", "conv")
        ((1,), ())
    """
    for suffix, axes in _IMAGE_AXES.items():
        if name.endswith(f"_{suffix}") and not asked.endswith(f"_{suffix}"):
            return axes
    return ()


def list_possible_names(name: str) -> Iterator[str]:
    """Yields the names that the layer `name` may have in a model, wrapped ones first.

    Example:
        >>> list(list_possible_names("conv"))[:3]
        ['quant_conv', 'quant_conv_row', 'quant_conv_point']
    """
    for prefix in (_PREFIX, ""):
        yield prefix + name
        for suffix in _IMAGE_AXES:
            yield f"{prefix}{name}_{suffix}"


def find_origins(model: keras.Model) -> dict[str, str]:
    """Returns the path of the user's layer ("outer/inner") by the name of each layer made from it.

    A model loaded from a file no longer knows the layers it was made from: there only the suffixes
    of images ("conv_row") are removed.
    """
    quantization = getattr(model, "quantization", None)
    if quantization is None:
        return {}
    layers = {strip_prefix(layer.name): layer for layer in model.layers}
    if quantization.origin:
        return {name: path for name, path in quantization.origin.items() if name in layers}
    found = {}
    for name in layers:
        base, _, suffix = name.rpartition("_")
        if not base or suffix not in _IMAGE_AXES:
            continue
        # Where there is a sequence behind the image, it has the layer's own name.
        if base not in layers or type(layers[base]).__name__ == "Reshape":
            found[name] = base
    return found


def find_user_names(model: keras.Model) -> dict[str, str]:
    """Returns the user's name of each layer that has another one in `model`, by that other name.

    A layer is named by its path, "backbone/conv", and a part of a layer by the path and the part,
    "attention (scores)".
    """
    return {name: _show(name, path) for name, path in find_origins(model).items()}


def _show(name: str, path: str) -> str:
    part = name.removeprefix(path.rpartition("/")[2]).strip("_")
    return f"{path} ({part})" if part and part not in _IMAGE_AXES else path
