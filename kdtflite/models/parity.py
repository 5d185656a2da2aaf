"""Two models run on the same random inputs: how far apart are they?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.tracing import map_structure, nodes

__all__ = ["TOLERANCE", "feeding_indices", "largest_difference", "outputs", "random_inputs"]

TOLERANCE = 1e-4  # of the largest output, in float32


def random_inputs(graph: Any, inputs: Any) -> Any:
    """Makes a small random batch for each input of a model.

    Args:
        graph: The Functional or Sequential model, of either Keras; it tells which inputs are
            indices, and how many there may be.
        inputs: Its symbolic inputs, in the structure that the model is called with.

    Returns:
        Arrays in that structure: normal values for floats, indices below the smallest vocabulary,
        other integers below 10, uint8 below 256.

    Raises:
        UnsupportedModelError: An input takes strings.
    """
    rng = np.random.default_rng(0)
    indices = feeding_indices(graph)
    vocabulary = min(_vocabularies(graph), default=10)

    def draw(tensor: Any) -> np.ndarray:
        shape = list(tensor.shape)
        shape[0] = shape[0] or 2
        # Images must survive every stride of a net that leaves its input size open.
        free = 64 if len(shape) == 4 else 16
        shape = [size or free for size in shape]
        dtype = getattr(tensor.dtype, "name", tensor.dtype)
        if dtype == "bool":
            return rng.random(shape) < 0.5
        if dtype == "string":
            raise UnsupportedModelError(
                f"The model {graph.name!r} takes strings at input {tensor.name!r}. "
                "Move text handling out of the model and give it numbers."
            )
        is_index = any(tensor is one for one in indices)
        if is_index or "int" in dtype:
            top = 256 if dtype == "uint8" and not is_index else vocabulary
            return rng.integers(0, top, shape).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)

    return map_structure(draw, inputs)


def outputs(model: Any, inputs: Any) -> Any:
    """Returns a model's outputs on such inputs, at training=False.

    Raises:
        UnsupportedModelError: The model cannot be run on them.
    """
    try:
        return model(inputs, training=False)
    # A model may raise anything on inputs that it was not made for.
    except Exception as error:
        shapes = map_structure(lambda array: f"{array.dtype}{list(array.shape)}", inputs)
        reason = " ".join(re.sub("\x1b\\[\\d+m", "", str(error)).split())
        raise UnsupportedModelError(
            f"The model {model.name!r} cannot be run on random inputs {shapes}, so it cannot be "
            f"checked: {type(error).__name__}: {reason[:300]} Let it take any values of these "
            "shapes and dtypes."
        ) from error


def largest_difference(
    what: str, expected: Any, received: Any, advice: str, *, tolerance: float = TOLERANCE
) -> float:
    """Returns the largest difference between two models' outputs.

    Args:
        what: What was done, with the model's name; begins the messages.
        expected: The outputs of the model that was given, in any structure.
        received: The outputs of what was made of it.
        advice: What to do instead; ends the messages.
        tolerance: How far apart they may be, as a share of the largest output.

    Raises:
        UnsupportedModelError: They differ in shape, or by more.
    """
    pair = _arrays(expected), _arrays(received)
    shapes = tuple([array.shape for array in arrays] for arrays in pair)
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            f"{what}, but its outputs changed shape. "
            f"Expected: {shapes[0]}. Received: {shapes[1]}. {advice}"
        )
    difference = scale = 0.0
    for one, other in zip(*pair, strict=True):
        both_nan = np.isnan(one) & np.isnan(other)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            gaps = np.where(both_nan | (one == other), 0.0, np.abs(one - other))
        # A NaN or infinity on one side only must not pass a comparison with `>`.
        difference = max(difference, float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0)))
        scale = max(scale, float(np.abs(one[np.isfinite(one)]).max(initial=0.0)))
    if difference > tolerance * scale:
        raise UnsupportedModelError(
            f"{what}, but its outputs differ by up to {difference:.3g}, where the largest output "
            f"is {scale:.3g}. Expected at most {tolerance:g} of that. {advice}"
        )
    return difference


def feeding_indices(graph: Any) -> list[Any]:
    """Returns the inputs of a graph that go straight into an Embedding: indices, not values."""
    inputs = graph.inputs
    found = []
    for layer, tensors in nodes(graph):
        if type(layer).__name__ in ("Embedding", "CategoryEncoding"):
            taken = tensors
        elif getattr(layer, "inputs", None) and hasattr(layer, "layers"):
            inner = feeding_indices(layer)
            pairs = zip(tensors, layer.inputs, strict=False)
            taken = [one for one, its in pairs if any(its is item for item in inner)]
        else:
            continue
        found += [one for one in inputs if any(one is item for item in taken)]
    return found


def _vocabularies(model: Any) -> Iterator[int]:
    for layer in model._flatten_layers(include_self=False):
        for name in ("input_dim", "num_tokens"):
            if isinstance(getattr(layer, name, None), int):
                yield getattr(layer, name)


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, dict):
        return [array for key in sorted(value) for array in _arrays(value[key])]
    if isinstance(value, list | tuple):
        return [array for item in value for array in _arrays(item)]
    if hasattr(value, "detach"):  # of Keras 3 on PyTorch
        value = value.detach().cpu()
    return [np.asarray(value).astype("float64")]
