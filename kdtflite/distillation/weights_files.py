"""Files of weights that a distiller and its student both load."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import tensorflow as tf
import tf_keras as keras

__all__ = ["load_weights", "save_weights"]

# The groups of a .weights.h5 file that are not the student's: the optimizer.
_OUTER = "kdtflite_outer"
# Keras walks the attributes of a model backwards, and meets the student as this one first.
_STUDENT = "trained_model"
_OWN = "vars"  # a model's own weights, beside those of its layers


def save_weights(
    distiller: keras.Model,
    student: keras.Model,
    path: Any,
    save: Callable[..., Any],
    **options: Any,
) -> None:
    """Writes the student's weights, and with them what else a training goes on from.

    A .weights.h5 file also holds the distiller's optimizer, a TensorFlow checkpoint what the
    losses train. Both can be loaded into the student alone.

    Args:
        distiller: The distiller, which tracks the student as its attribute `trained_model`.
        student: The student.
        path: As `Model.save_weights` takes it.
        save: Keras' own `save_weights` of the distiller.
        **options: The other arguments of `save_weights`.
    """
    name = os.fspath(path)
    if name.endswith(".weights.h5"):
        save(path, **options)
        with h5py.File(name, "r+") as file:
            del file[_OWN]  # a distiller has none
            outer = [key for key in file if key != _STUDENT]
            for key in list(file[_STUDENT]):
                if key not in outer:  # a student that is compiled itself has an optimizer, too
                    file.move(f"{_STUDENT}/{key}", key)
            del file[_STUDENT]
            file.attrs[_OUTER] = outer
        return
    student.save_weights(path, **options)
    if _is_checkpoint(name):
        _make_checkpoint(distiller, student).write(name)


def load_weights(
    distiller: keras.Model,
    student: keras.Model,
    path: Any,
    load: Callable[..., Any],
    *args: Any,
    **options: Any,
) -> Any:
    """Loads what `save_weights` wrote, or a file of the student's weights.

    Args:
        distiller: The distiller.
        student: The student.
        path: As `Model.load_weights` takes it.
        load: Keras' own `load_weights` of the distiller.
        *args: The other arguments of `load_weights`.
        **options: The other arguments of `load_weights`.
    """
    name = os.fspath(path)
    if _is_checkpoint(name):
        return _make_checkpoint(distiller, student).read(name).expect_partial()
    if name.endswith(".weights.h5") and _holds_more(name):
        with _restore_layout(name) as restored:
            return load(restored, *args, **options)
    return student.load_weights(path, *args, **options)


def _is_checkpoint(name: str) -> bool:
    return Path(f"{name}.index").is_file()


def _make_checkpoint(distiller: keras.Model, student: keras.Model) -> tf.train.Checkpoint:
    # The student is the root, as in a checkpoint of its own.
    return tf.train.Checkpoint(student, distiller=distiller)


def _holds_more(name: str) -> bool:
    with h5py.File(name, "r") as file:
        return _OUTER in file.attrs


@contextmanager
def _restore_layout(name: str) -> Iterator[str]:
    """Gives the path of a copy in which the student is one group, as Keras writes it."""
    with tempfile.TemporaryDirectory() as folder:
        restored = os.path.join(folder, "copy.weights.h5")
        with h5py.File(name, "r") as given, h5py.File(restored, "w") as copy:
            outer = set(given.attrs[_OUTER])
            copy.create_group(_OWN)
            copy.create_group(_STUDENT)
            for key in given:
                given.copy(key, copy if key in outer else copy[_STUDENT])
        yield restored
