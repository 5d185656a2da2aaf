"""The base of teachers that run outside TensorFlow, on NumPy arrays."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kdtflite.distillation.outputs import Outputs, to_logits
from kdtflite.distillation.teachers.answers import as_array, check_outputs, looks_like_probabilities
from kdtflite.distillation.teachers.base import Shape, Teacher, get_input_specs, preprocess_specs
from kdtflite.distillation.teachers.failures import remember_errors
from kdtflite.distillation.teachers.waiting import call_watched
from kdtflite.errors import (
    ConfigurationError,
    DataError,
    KdtfliteError,
    ShapeMismatchError,
    to_line,
)
from kdtflite.progress import say

__all__ = ["NumpyTeacher"]

_ROUNDING = 1e-3  # of the outputs' range: half precision on a GPU differs by as much
_PROBES = 2  # an axis of 1 might be there by accident


class NumpyTeacher(Teacher):
    """Base of teachers whose forward pass is Python code on arrays.

    In a compiled step it runs as tf.numpy_function: on the CPU of this process, not under XLA
    (`jit_compile=True`), and without gradient. Empty batches are not passed on.

    Args:
        name: For messages.
        outputs: The kind of outputs of `predict`.
        preprocessing: Turns the student's inputs into the teacher's, with TensorFlow operations.
        output_shape: Batch first; None to learn it from a batch of zeros in `check_inputs`.
    """

    runs_python = True
    _measures_outputs = False  # whether the kind of outputs is taken from what a call returns

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
                f"The output shape of the teacher {self.name!r} is not known: it is learned from "
                "the student's inputs, which differ from the teacher's. Pass "
                "output_shape=(None, classes) to the teacher."
            )
        return self._shape

    @output_shape.setter
    def output_shape(self, shape: Shape) -> None:
        self._shape = shape

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, ..., classes), for the student's inputs `x`."""
        inputs = self._to_inputs(x if self.preprocessing is None else self.preprocessing(x))
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        structure = tf.nest.map_structure(lambda _: None, inputs)

        def answers(*arrays: NDArray[Any]) -> NDArray[np.float32]:
            return self._compute(structure, arrays)

        tensors = tf.nest.flatten(inputs)
        if tf.executing_eagerly():  # errors come as they are
            outputs = tf.constant(answers(*(tensor.numpy() for tensor in tensors)))
        else:
            watched = functools.partial(call_watched, answers, name=self.name)
            outputs = tf.numpy_function(remember_errors(watched), tensors, tf.float32)
        outputs.set_shape(self.output_shape)
        return to_logits(outputs, self.outputs)

    def check_inputs(self, student: Any) -> None:
        """Checks that the teacher takes what the student takes, and learns its output shape.

        Raises:
            ShapeMismatchError: It takes other shapes.
            ConfigurationError: Its output shape cannot be learned.
        """
        specs = preprocess_specs(self.preprocessing, get_input_specs(student))
        # tf.data turns lists into tuples, so the teacher will be given tuples.
        inputs = self._check_specs(tuple(specs) if isinstance(specs, list) else specs, student)
        if self._shape is None:
            self._shape = self._probe(inputs)

    def check_repeats(self, x: Any) -> None:
        """Says so if two answers for the same batch differ by more than rounding."""
        if not self.may_vary:
            return
        inputs = self._to_inputs(x if self.preprocessing is None else self.preprocessing(x))
        arrays = tf.nest.map_structure(lambda part: tf.convert_to_tensor(part).numpy(), inputs)
        count = len(tf.nest.flatten(arrays)[0])
        first, again = self._ask(arrays, count), self._ask(arrays, count)
        difference = float(np.abs(first - again).max(initial=0.0))
        scale = float(np.ptp(first)) if first.size else 0.0
        if difference > _ROUNDING * scale:
            say(
                f"The teacher {self.name!r} answers differently on the same batch, by up to "
                f"{difference:.3g}, in outputs that range over {scale:.3g}. Is its dropout left "
                "on? Call a Keras model as model(x, training=False), a PyTorch one after eval()."
            )

    def _to_inputs(self, x: Any) -> Any:
        """Returns the inputs of `predict`, as tensors."""
        return x

    def _check_specs(self, specs: Any, student: Any) -> Any:
        """Returns specs of the inputs of `predict`, from specs of the preprocessed inputs."""
        del student
        return specs

    def _compute(self, structure: Any, arrays: tuple[NDArray[Any], ...]) -> NDArray[np.float32]:
        count = len(arrays[0])
        if count == 0:
            return np.zeros((0, *(size or 0 for size in self.output_shape[1:])), np.float32)
        inputs = tf.nest.pack_sequence_as(structure, list(arrays))
        array = self._ask(inputs, count)
        if self.outputs == "logits" and looks_like_probabilities(array):
            raise DataError(
                f"Expected logits from the teacher {self.name!r}. Received: outputs that are "
                "positive and sum to 1, as probabilities do. Pass teacher_outputs="
                '"probabilities" to the distiller, or outputs="probabilities" to the teacher '
                '("values" for a regression).'
            )
        return array

    def _ask(self, inputs: Any, count: int) -> NDArray[np.float32]:
        given = self._call_predict(inputs)
        return check_outputs(given, count, self.output_shape, self.outputs, name=self.name)

    def _call_predict(self, inputs: Any) -> Any:
        try:
            return self.predict(inputs)
        except KdtfliteError:
            raise
        except Exception as error:
            received = ", ".join(str(array.shape) for array in tf.nest.flatten(inputs))
            note = f"Raised by the teacher {self.name!r} for inputs of shape {received}."
            # What BaseException.add_note does, which Python 3.10 does not have.
            vars(error).setdefault("__notes__", []).append(note)
            raise

    def _probe(self, specs: Any) -> Shape:
        sizes = [tuple(spec.shape[1:]) for spec in tf.nest.flatten(specs)]
        how = "Pass output_shape=(None, classes) to the teacher."
        if any(None in size for size in sizes):
            raise ConfigurationError(
                f"The output shape of the teacher {self.name!r} cannot be learned, since the "
                f"student leaves sizes of its inputs open: {', '.join(map(str, sizes))}. {how}"
            )
        zeros = tf.nest.map_structure(
            lambda spec: np.zeros((_PROBES, *spec.shape[1:]), spec.dtype.as_numpy_dtype),
            specs,
        )
        try:
            array = as_array(self.predict(zeros), name=self.name)
        except KdtfliteError:
            raise
        except Exception as error:  # the user's code may raise anything
            received = ", ".join(str((_PROBES, *size)) for size in sizes)
            raise ConfigurationError(
                f"The teacher {self.name!r} does not run on a batch of zeros of shape {received}, "
                "from which its output shape would be learned: "
                f"{type(error).__name__}: {to_line(error)[:300]}. {how}"
            ) from error
        if array.ndim < 2 or array.shape[0] != _PROBES:
            raise ShapeMismatchError(
                f"Expected one row of outputs per sample from the teacher {self.name!r}, shape "
                f"({_PROBES}, classes) for a batch of {_PROBES}. Received: {array.shape}."
            )
        if self._measures_outputs:
            found = looks_like_probabilities(array)
            self.outputs = "probabilities" if found else "logits"
            say(
                f"The teacher {self.name!r} is a function; its outputs are taken as {self.outputs} "
                f"({'they sum' if found else 'they do not sum'} to 1). Pass teacher_outputs= if "
                "they are something else."
            )
        return (None, *array.shape[1:])
