"""The operations on tensors that Keras 3 keeps in a model's graph, and so in its file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

__all__ = ["list_saved_operations"]

# Mathematics on tensors, and nothing else, is in these modules.
_AREAS = ("image", "linalg", "math", "nn", "numpy")
# The others in `core` take functions: loops, branches, maps.
_OTHERS = """
    core.Cast core.ConvertToTensor core.SaturateCast core.Scatter core.ScatterUpdate core.Slice
    core.SliceUpdate core.StopGradient core.Unstack einops.Rearrange
"""


def list_saved_operations() -> Iterator[tuple[str, str]]:
    """Yields the module and class of each operation that takes tensors and settings only."""
    import keras as keras3

    for area in _AREAS:
        module = importlib.import_module(f"keras.src.ops.{area}")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, keras3.Operation):
                yield value.__module__, name
    for full in _OTHERS.split():
        area, name = full.split(".")
        yield f"keras.src.ops.{area}", name
