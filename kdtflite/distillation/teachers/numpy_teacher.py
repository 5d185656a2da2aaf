"""A teacher that runs outside TensorFlow, on NumPy arrays."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kdtflite.distillation.outputs import Outputs, to_logits
from kdtflite.distillation.teachers.answers import as_array, checked, looks_like_probabilities
from kdtflite.distillation.teachers.base import Shape, Teacher, input_specs, prepared
from kdtflite.distillation.teachers.failures import remembering
from kdtflite.errors import ConfigurationError, KdtfliteError, ShapeMismatchError, one_line
from kdtflite.progress import say

__all__ = ["NumpyTeacher"]

_PROBED = 2  # samples: an axis of 1 might be there by accident


class NumpyTeacher(Teacher):
    """Base of teachers whose forward pass is Python code on arrays.

    In a compiled step it runs as tf.numpy_function: on the CPU of this process, not under XLA
    (`jit_compile=True`), and without gradient. A batch of no samples is not handed over.

    Args:
        name: For messages.
        outputs: What `predict` gives.
        preprocessing: Turns the student's inputs into the teacher's, with TensorFlow operations.
        output_shape: Batch first; None to learn it from a batch of zeros in `check_inputs`.
    """

    def __init__(
        self,
        *,
        name: str,
        outputs: Outputs,
        preprocessing: Callable[[Any], Any] | None,
        output_shape: Shape | None,
    ) -> None:
        self.name = name
        self.outputs = outputs
        self.preprocessing = preprocessing
        self._shape = output_shape
        self._warned = False

    @abc.abstractmethod
    def predict(self, inputs: Any) -> Any:
        """Returns outputs, shape (batch, ...), for arrays in the structure of the inputs."""

    @property
    def output_shape(self) -> Shape:
        """Shape of its logits, batch first.

        Raises:
            ConfigurationError: It is not known yet.
        """
        if self._shape is None:
            raise ConfigurationError(
                f"The output shape of the teacher {self.name!r} is not known: it is learnt from "
                "what the student takes, and the student has inputs of its own. Pass "
                "output_shape=(None, classes) to the teacher."
            )
        return self._shape

    @output_shape.setter
    def output_shape(self, shape: Shape) -> None:
        self._shape = shape

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, ..., classes), for the student's inputs `x`."""
        inputs = self._inputs(x if self.preprocessing is None else self.preprocessing(x))
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        structure = tf.nest.map_structure(lambda _: None, inputs)

        def answers(*arrays: NDArray[Any]) -> NDArray[np.float32]:
            return self._answers(structure, arrays)

        tensors = tf.nest.flatten(inputs)
        if tf.executing_eagerly():  # errors come as they are
            outputs = tf.constant(answers(*(tensor.numpy() for tensor in tensors)))
        else:
            outputs = tf.numpy_function(remembering(answers), tensors, tf.float32)
        outputs.set_shape(self.output_shape)
        return to_logits(outputs, self.outputs)

    def check_inputs(self, student: Any) -> None:
        """Checks that the teacher takes what the student takes, and learns its output shape.

        Raises:
            ShapeMismatchError: It takes other shapes.
            ConfigurationError: Its output shape cannot be learnt.
        """
        specs = prepared(self.preprocessing, input_specs(student))
        # tf.data makes tuples of lists, so that is what the teacher will be given.
        inputs = self._checked_specs(tuple(specs) if isinstance(specs, list) else specs, student)
        if self._shape is None:
            self._shape = self._probed(inputs)

    def _inputs(self, x: Any) -> Any:
        """Returns what `predict` is given, as tensors."""
        return x

    def _checked_specs(self, specs: Any, student: Any) -> Any:
        """Returns specs of what `predict` is given, for those of the preprocessed inputs."""
        del student
        return specs

    def _answers(self, structure: Any, arrays: tuple[NDArray[Any], ...]) -> NDArray[np.float32]:
        count = len(arrays[0])
        if count == 0:
            return np.zeros((0, *(size or 0 for size in self.output_shape[1:])), np.float32)
        given = self._ran(tf.nest.pack_sequence_as(structure, list(arrays)))
        array = checked(given, count, self.output_shape, self.outputs, name=self.name)
        if self.outputs == "logits" and not self._warned and looks_like_probabilities(array):
            self._warned = True
            say(
                f"The teacher {self.name!r} is said to give logits, but its outputs are positive "
                'and sum to 1. If they are probabilities, pass outputs="probabilities".'
            )
        return array

    def _ran(self, inputs: Any) -> Any:
        try:
            return self.predict(inputs)
        except KdtfliteError:
            raise
        except Exception as error:
            received = ", ".join(str(array.shape) for array in tf.nest.flatten(inputs))
            error.add_note(f"Raised by the teacher {self.name!r} for inputs of shape {received}.")
            raise

    def _probed(self, specs: Any) -> Shape:
        sizes = [tuple(spec.shape[1:]) for spec in tf.nest.flatten(specs)]
        how = "Pass output_shape=(None, classes) to the teacher."
        if any(None in size for size in sizes):
            raise ConfigurationError(
                f"The output shape of the teacher {self.name!r} cannot be learnt, since the "
                f"student leaves sizes of its inputs open: {', '.join(map(str, sizes))}. {how}"
            )
        zeros = tf.nest.map_structure(
            lambda spec: np.zeros((_PROBED, *spec.shape[1:]), spec.dtype.as_numpy_dtype), specs
        )
        try:
            array = as_array(self.predict(zeros), name=self.name)
        except KdtfliteError:
            raise
        except Exception as error:  # the user's code may raise anything
            received = ", ".join(str((_PROBED, *size)) for size in sizes)
            raise ConfigurationError(
                f"The teacher {self.name!r} does not run on a batch of zeros of shape {received}, "
                "from which its output shape would be learnt: "
                f"{type(error).__name__}: {one_line(error)[:300]}. {how}"
            ) from error
        if array.ndim < 2 or array.shape[0] != _PROBED:
            raise ShapeMismatchError(
                f"Expected one row of outputs a sample from the teacher {self.name!r}, shape "
                f"({_PROBED}, classes) for a batch of {_PROBED}. Received: {array.shape}."
            )
        return (None, *array.shape[1:])
