"""A Python function as a teacher."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from kdtflite.distillation.outputs import Outputs
from kdtflite.distillation.teachers.base import Shape
from kdtflite.distillation.teachers.numpy_teacher import NumpyTeacher
from kdtflite.errors import ConfigurationError, choose

__all__ = ["CallableTeacher"]


class CallableTeacher(NumpyTeacher):
    """A Python function that gives outputs for a batch of NumPy arrays: PyTorch, a remote model.

    It runs in this process, one call at a time, once per training step; with `cache_teacher`, once
    per sample for the whole training. `fit` first shows it one batch twice: answers that differ
    are reported. Its arrays are copies, so it may change them. Call a Keras model inside it as
    model(x, training=False): with a single inter-op thread, compiled TensorFlow (predict,
    tf.function) cannot run in a step that waits for it, and the training ends with an error.

    Args:
        function: Takes an array, shape (batch, ...), or the tuple or dict of arrays that `fit` is
            given, and returns anything np.asarray() can read, shape (batch, classes).
        output_shape: (None, classes), or the number of classes; None to learn it by calling the
            function once with a batch of two zeros.
        outputs: "logits", "probabilities" (softmax), "sigmoid" or "values" (regression). With
            "auto", probabilities are told from logits where the output shape is learned.
        preprocessing: Turns the student's inputs into those of `function`, with TensorFlow
            operations.
        name: For messages; by default the function's.
        fingerprint: A text that changes when its outputs do ("resnet50 epoch 30"); a cache needs
            it, since functions cannot be compared.

    Raises:
        ConfigurationError: An option makes no sense.

    Example:
        >>> import numpy as np
        >>> from kdtflite.teachers import CallableTeacher
        >>> def predict(images):  # a model of any library; PyTorch wants the channels first
        ...     return images.transpose(0, 3, 1, 2).mean(axis=(2, 3))
        >>> teacher = CallableTeacher(predict, output_shape=3)
        >>> teacher(np.ones((2, 8, 8, 3), np.float32)).shape
        TensorShape([2, 3])
    """

    may_vary = True

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        output_shape: Shape | int | None = None,
        outputs: Outputs | Literal["auto"] = "auto",
        preprocessing: Callable[[Any], Any] | None = None,
        name: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise ConfigurationError(
                f"Expected a function of a batch as the teacher. Received: {function!r}."
            )
        choose(outputs, ("auto", *get_args(Outputs)), what="kind of outputs")
        super().__init__(
            name=name or str(getattr(function, "__name__", type(function).__name__)),
            outputs="logits" if outputs == "auto" else outputs,
            preprocessing=preprocessing,
            output_shape=_to_shape(output_shape),
        )
        self._measures_outputs = outputs == "auto"
        self.function = function
        self._fingerprint = fingerprint
        # Replicas step in threads of their own, which a user's function need not support.
        self._lock = threading.Lock()

    def predict(self, inputs: Any) -> Any:
        """Returns the function's outputs for arrays."""
        # TensorFlow's arrays are the student's inputs themselves, not copies.
        inputs = tf.nest.map_structure(np.array, inputs)
        with self._lock:
            return self.function(inputs)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the given fingerprint.

        Raises:
            ConfigurationError: No fingerprint was given.
        """
        if self._fingerprint is None:
            raise ConfigurationError(
                f"A cache of the teacher {self.name!r}, a Python function, would not notice when "
                "its answers change. Pass fingerprint= to CallableTeacher: a text that you change "
                'with the model behind the function, such as "resnet50 epoch 30".'
            )
        return hashlib.sha256(f"{self.outputs}\n{self._fingerprint}".encode()).hexdigest()


def _to_shape(given: Shape | int | None) -> Shape | None:
    if given is None:
        return None
    shape = (None, given) if isinstance(given, int) else tuple(given)
    if (
        len(shape) < 2
        or shape[0] is not None
        or any(size is not None and size < 1 for size in shape)
    ):
        raise ConfigurationError(
            f"Expected output_shape=(None, classes) or a number of classes. Received: {given!r}."
        )
    return shape
