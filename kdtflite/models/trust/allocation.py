"""Bounds the variables that a configuration makes while Keras rebuilds the model.

A few digits in a configuration declare a layer of any size, and Keras fills it before it reads the
weights. A file holds the weights of its model, so they bound what the model may make.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from math import prod
from typing import Any

from kdtflite.errors import ModelFileError
from kdtflite.models.trust.sizes import show_bytes

__all__ = ["bound_variables"]

# For what is not stored (states, seeds), for weights stored in half precision, and for SavedModels,
# of which Keras makes some variables twice.
_FLOOR = 64 << 20
_EXPANSION = 3


@contextlib.contextmanager
def bound_variables(
    path: str | os.PathLike[str], weight_bytes: int, *, generation: int, unsafe: bool = False
) -> Iterator[None]:
    """Limits the variables that Keras makes in the block, by the weights of the file.

    Args:
        path: The file, for the message.
        weight_bytes: The size of the weights that it holds.
        generation: The Keras that makes them, 2 or 3.
        unsafe: Set no limit.

    Raises:
        ModelFileError: A variable would exceed the limit. It is not made.
    """
    if unsafe:
        yield
        return
    budget = _Budget(path, weight_bytes)
    with (_count_keras3 if generation == 3 else _count_tf_keras)(budget):
        try:
            yield
        except Exception as error:
            # Keras may have wrapped the refusal in an error of its own.
            if budget.refusal is None or error is budget.refusal:
                raise
            raise budget.refusal from error


class _Budget:
    """The bytes that may still be made, by the thread that loads."""

    def __init__(self, path: str | os.PathLike[str], weight_bytes: int) -> None:
        self.refusal: ModelFileError | None = None
        self._path, self._stored = path, weight_bytes
        self._left = _FLOOR + _EXPANSION * weight_bytes
        self._thread = threading.get_ident()

    def spend(self, name: Any, shape: Any, width: int) -> None:
        """Raises unless a variable may be made.

        Args:
            name: What Keras calls it.
            shape: Its shape.
            width: The bytes of each element.
        """
        if threading.get_ident() != self._thread:
            return
        sizes = [int(size or 0) for size in shape]
        needed = prod(sizes) * width
        self._left -= needed
        if self._left < 0:
            self.refusal = ModelFileError(
                f"{self._path} is too large to be loaded: its configuration declares the variable "
                f"{str(name)[:100]!r} of shape {tuple(sizes)} ({show_bytes(needed)}), but the file "
                f"holds {show_bytes(self._stored)} of weights. Save the model again, or pass "
                "unsafe=True / --unsafe if you trust the file."
            )
            raise self.refusal


@contextlib.contextmanager
def _count_tf_keras(budget: _Budget) -> Iterator[None]:
    import tensorflow as tf

    def create(make: Any, **options: Any) -> Any:
        value: Any = options.get("initial_value")
        shape, dtype = options.get("shape"), options.get("dtype")
        if shape is None and hasattr(value, "shape"):
            shape, dtype = value.shape, dtype or value.dtype
        if shape is not None:
            shape = tf.TensorShape(shape)
            width = tf.as_dtype(dtype or tf.float32).size
            budget.spend(options.get("name"), shape.as_list() if shape.rank else [], width)
        return make(**options)

    with tf.variable_creator_scope(create):
        yield


@contextlib.contextmanager
def _count_keras3(budget: _Budget) -> Iterator[None]:
    import keras as keras3

    kind: Any = keras3.Variable  # of any backend; there is no scope for their creation
    make = kind.__init__

    def count(self: Any, initializer: Any, shape: Any = None, *args: Any, **options: Any) -> None:
        if shape is not None:
            budget.spend(options.get("name"), shape, 4)
        make(self, initializer, shape, *args, **options)

    kind.__init__ = count
    try:
        yield
    finally:
        kind.__init__ = make
