"""Two models run on the same random inputs: how far apart are they?"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.graphs import map_structure, nodes
from kdtflite.progress import say

__all__ = ["TOLERANCE", "Parity", "compare", "feeding_indices", "random_inputs", "tell_once"]

TOLERANCE = 1e-4  # of the largest output, in float32
_MOST = 0.05  # of the largest output, whatever the noise

# Models whose parity was told: the doors of one job may each be given the same model.
_told: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass(frozen=True)
class Parity:
    """How far the outputs of two models are apart.

    Attributes:
        difference: The largest difference between their outputs.
        largest: The largest output of the model that was given.
    """

    difference: float
    largest: float

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} on random input "
            f"(largest output {self.largest:.3g})"
        )


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


def compare(
    what: str,
    given: Any,
    made: Any,
    inputs: Any,
    advice: str,
    *,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Runs two models on the same inputs, at training=False, and compares their outputs.

    Args:
        what: What was done, with the model's name; begins the messages.
        given: The model that was given.
        made: What was made of it.
        inputs: Arrays, as `random_inputs` makes them.
        advice: What to do instead; ends the messages.
        tolerance: How far apart the outputs may be, as a share of the largest one. They may also
            be apart by ten times what the last bits of the inputs alone change, up to 5 %: in a
            deep net with odd weights the rounding of float32 grows beyond any smaller share.

    Raises:
        UnsupportedModelError: A model cannot be run, or the outputs differ in shape or by more.
    """
    expected, received = _outputs(given, inputs), _outputs(made, inputs)
    shapes = tuple([array.shape for array in arrays] for arrays in (expected, received))
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            f"{what}, but its outputs changed shape. "
            f"Expected: {shapes[0]}. Received: {shapes[1]}. {advice}"
        )
    difference = _largest_gap(expected, received)
    largest = max(
        (float(np.abs(one[np.isfinite(one)]).max(initial=0.0)) for one in expected), default=0.0
    )
    if difference <= tolerance * largest:
        return Parity(difference, largest)
    if _largest_gap(expected, _outputs(given, inputs)) > tolerance * largest:
        raise UnsupportedModelError(
            f"The model {given.name!r} computes something else every time on the same inputs at "
            "training=False, so it cannot be checked. Make no random numbers and no layers or "
            "variables in call()."
        )
    noise = _largest_gap(expected, _outputs(given, _shaken(inputs)))
    if difference > 10 * noise or difference > _MOST * largest:
        raise UnsupportedModelError(
            f"{what}, but its outputs differ by up to {difference:.3g}, where the largest output "
            f"is {largest:.3g}. Expected at most {tolerance:g} of that. {advice}"
        )
    return Parity(difference, largest)


def tell_once(model: Any, message: str) -> None:
    """Prints a line about a model, the first time that there is one."""
    if model not in _told:
        _told.add(model)
        say(message)


def _outputs(model: Any, inputs: Any) -> list[np.ndarray]:
    try:
        return _arrays(model(inputs, training=False))
    # A model may raise anything on inputs that it was not made for.
    except Exception as error:
        shapes = map_structure(lambda array: f"{array.dtype}{list(array.shape)}", inputs)
        reason = " ".join(re.sub("\x1b\\[\\d+m", "", str(error)).split())
        raise UnsupportedModelError(
            f"The model {model.name!r} cannot be run on random inputs {shapes}, so it cannot be "
            f"checked: {type(error).__name__}: {reason[:300]} Let it take any values of these "
            "shapes and dtypes."
        ) from error


def _largest_gap(expected: list[np.ndarray], received: list[np.ndarray]) -> float:
    largest = 0.0
    for one, other in zip(expected, received, strict=True):
        both_nan = np.isnan(one) & np.isnan(other)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            gaps = np.where(both_nan | (one == other), 0.0, np.abs(one - other))
        # A NaN or infinity on one side only must not pass a comparison with `>`.
        largest = max(largest, float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0)))
    return largest


def _shaken(inputs: Any) -> Any:
    """Changes floats in their last bits."""
    rng = np.random.default_rng(1)

    def shake(array: np.ndarray) -> np.ndarray:
        if not np.issubdtype(array.dtype, np.floating):
            return array
        return (array * (1 + 1e-6 * rng.choice([-1, 1], array.shape))).astype(array.dtype)

    return map_structure(shake, inputs)


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
