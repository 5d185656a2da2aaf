"""Compares two models by running both on the same inputs."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.graphs import map_structure, walk_nodes
from kdtflite.models.keras_internals import flatten_layers
from kdtflite.progress import say

__all__ = ["TOLERANCE", "Parity", "compare", "draw_inputs", "find_index_inputs", "report_once"]

TOLERANCE = 1e-4  # of the largest output, in float32
_MOST = 0.05  # of the largest output, whatever the noise
_LEAST = 1e-6  # stands for the largest value of an output that is zero everywhere

# Models whose parity was reported: several functions of one job may get the same model.
_reported: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass(frozen=True)
class Parity:
    """The distance between the outputs of two models.

    Attributes:
        difference: The largest difference between their outputs.
        largest: The largest output of the given model.
    """

    difference: float
    largest: float

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} on random input "
            f"(largest output {self.largest:.3g})"
        )


def draw_inputs(graph: Any, inputs: Any) -> Any:
    """Draws a small random batch for each input of a model.

    Args:
        graph: The Functional or Sequential model, of either Keras. Its layers show which inputs
            are indices, and the size of the vocabulary.
        inputs: Its symbolic inputs, in the structure that the model is called with.

    Returns:
        Arrays in that structure: normal values for floats, indices below the smallest vocabulary,
        other integers below 10, uint8 below 256.

    Raises:
        UnsupportedModelError: An input takes strings.
    """
    rng = np.random.default_rng(0)
    indices = find_index_inputs(graph)
    vocabulary = min(_list_vocabularies(graph), default=10)

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
    allow_noise: bool = True,
) -> Parity:
    """Compares two models on the same inputs at training=False, and raises if they differ.

    Args:
        what: What was done, with the model's name; begins the messages.
        given: The given model.
        made: The model made from it.
        inputs: Arrays, as `draw_inputs` returns them.
        advice: What to do instead; ends the messages.
        tolerance: The largest difference allowed in each output, as a share of its largest value.
        allow_noise: Allow ten times the effect of the last bits of the inputs, too, up to 5 %: in
            a deep net with unusual weights the rounding of float32 grows beyond any smaller share.

    Raises:
        UnsupportedModelError: A model cannot be run, or the outputs differ in shape or by more.
    """
    expected, received = _run(given, inputs), _run(made, inputs)
    shapes = tuple([array.shape for array in arrays] for arrays in (expected, received))
    if shapes[0] != shapes[1]:
        raise UnsupportedModelError(
            f"{what}, but its outputs changed shape. "
            f"Expected: {shapes[0]}. Received: {shapes[1]}. {advice}"
        )
    gaps = _measure_gaps(expected, received)
    # Each output by its own measure: a score beside boxes in pixels counts as much as they do.
    sizes = [float(np.abs(one[np.isfinite(one)]).max(initial=0.0)) for one in expected]
    allowed = np.array([tolerance * max(size, _LEAST) for size in sizes])
    parity = Parity(float(gaps.max(initial=0.0)), max(sizes, default=0.0))
    if np.all(gaps <= allowed):
        return parity
    if np.any(_measure_gaps(expected, _run(given, inputs)) > allowed):
        raise UnsupportedModelError(
            f"The model {given.name!r} computes something else every time on the same inputs at "
            "training=False, so it cannot be checked. Make no random numbers and no layers or "
            "variables in call()."
        )
    if allow_noise:
        noise = _measure_gaps(expected, _run(given, _shake(inputs)))
        allowed = np.maximum(allowed, np.minimum(10 * noise, _MOST * np.array(sizes)))
    if np.all(gaps <= allowed):
        return parity
    worst = int(np.argmax(gaps / allowed))
    names = getattr(given, "output_names", ())
    name = names[worst] if len(names) == len(gaps) else str(worst)
    raise UnsupportedModelError(
        f"{what}, but its output {name!r} differs by up to {gaps[worst]:.3g}, where its largest "
        f"value is {sizes[worst]:.3g}. Expected at most {tolerance:g} of that. {advice}"
    )


def report_once(model: Any, message: str) -> None:
    """Prints a line about a model, unless one was printed before."""
    if model not in _reported:
        _reported.add(model)
        say(message)


def _run(model: Any, inputs: Any) -> list[np.ndarray]:
    try:
        return _to_arrays(model(inputs, training=False))
    # A model may raise anything on inputs that it was not made for.
    except Exception as error:
        shapes = map_structure(lambda array: f"{array.dtype}{list(array.shape)}", inputs)
        reason = " ".join(re.sub("\x1b\\[\\d+m", "", str(error)).split())
        raise UnsupportedModelError(
            f"The model {model.name!r} cannot be run on inputs {shapes}, so it cannot be "
            f"checked: {type(error).__name__}: {reason[:300]} Let it take any values of these "
            "shapes and dtypes."
        ) from error


def _measure_gaps(expected: list[np.ndarray], received: list[np.ndarray]) -> np.ndarray:
    """Returns the largest difference in each output."""
    found = []
    for one, other in zip(expected, received, strict=True):
        both_nan = np.isnan(one) & np.isnan(other)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            gaps = np.where(both_nan | (one == other), 0.0, np.abs(one - other))
        # A NaN or infinity on one side only must not pass a comparison with `>`.
        found.append(float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0)))
    return np.array(found)


def _shake(inputs: Any) -> Any:
    """Changes the last bits of floats."""
    rng = np.random.default_rng(1)

    def shake(array: np.ndarray) -> np.ndarray:
        if not np.issubdtype(array.dtype, np.floating):
            return array
        return (array * (1 + 1e-6 * rng.choice([-1, 1], array.shape))).astype(array.dtype)

    return map_structure(shake, inputs)


def find_index_inputs(graph: Any) -> list[Any]:
    """Returns the inputs of a graph that go straight into an Embedding layer: indices."""
    inputs = graph.inputs
    found = []
    for layer, tensors in walk_nodes(graph):
        if type(layer).__name__ in ("Embedding", "CategoryEncoding"):
            taken = tensors
        elif getattr(layer, "inputs", None) and hasattr(layer, "layers"):
            inner = find_index_inputs(layer)
            pairs = zip(tensors, layer.inputs, strict=False)
            taken = [one for one, its in pairs if any(its is item for item in inner)]
        else:
            continue
        found += [one for one in inputs if any(one is item for item in taken)]
    return found


def _list_vocabularies(model: Any) -> Iterator[int]:
    for layer in flatten_layers(model):
        for name in ("input_dim", "num_tokens"):
            if isinstance(getattr(layer, name, None), int):
                yield getattr(layer, name)


def _to_arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, dict):
        return [array for key in sorted(value) for array in _to_arrays(value[key])]
    if isinstance(value, list | tuple):
        return [array for item in value for array in _to_arrays(item)]
    if hasattr(value, "detach"):  # a tensor of Keras 3 on PyTorch
        value = value.detach().cpu()
    return [np.asarray(value).astype("float64")]
