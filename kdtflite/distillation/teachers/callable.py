"""Any Python function as the teacher."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from kdtflite.distillation.outputs import Outputs
from kdtflite.distillation.teachers.base import Shape
from kdtflite.distillation.teachers.numpy_teacher import NumpyTeacher
from kdtflite.errors import ConfigurationError, choose

__all__ = ["CallableTeacher"]


class CallableTeacher(NumpyTeacher):
    """A Python function that gives outputs for a batch of NumPy arrays: PyTorch, a remote model.

    It runs in this process, one call at a time, once a training step; `cache_teacher` calls it
    once a sample for the whole training. Its arrays are copies, so it may change them. Call a Keras
    model inside as model(x, training=False): compiled TensorFlow (predict, tf.function) stands
    still, inside a step that waits for it, where TensorFlow has a single inter-op thread.

    Args:
        function: Takes an array, shape (batch, ...), or the tuple or dict of arrays that `fit` is
            given, and returns what np.asarray() can read, shape (batch, classes).
        output_shape: (None, classes), or the number of classes; None to learn it by calling the
            function once with a batch of two zeros.
        outputs: "logits", "probabilities" (softmax), "sigmoid" or "values" (regression).
        preprocessing: Turns the student's inputs into what `function` is given, with TensorFlow
            operations.
        name: For messages; the function's own by default.
        fingerprint: What changes when its answers do ("resnet50 epoch 30"); needed for a cache,
            since a function cannot be compared with what it was.

    Raises:
        ConfigurationError: Options that make no sense.

    Example:
        >>> def teach(images):  # NHWC, as the student's
        ...     with torch.no_grad():
        ...         return torch_model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        >>> kdtflite.Distiller(student, CallableTeacher(teach, output_shape=10))
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        output_shape: Shape | int | None = None,
        outputs: Outputs = "logits",
        preprocessing: Callable[[Any], Any] | None = None,
        name: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise ConfigurationError(
                f"Expected a function of a batch as the teacher. Received: {function!r}."
            )
        choose(outputs, get_args(Outputs), what="kind of outputs")
        super().__init__(
            name=name or str(getattr(function, "__name__", type(function).__name__)),
            outputs=outputs,
            preprocessing=preprocessing,
            output_shape=_shape(output_shape),
        )
        self.function = function
        self._fingerprint = fingerprint
        # Replicas step in threads of their own; a user's function need not bear that.
        self._lock = threading.Lock()

    def predict(self, inputs: Any) -> Any:
        """Returns what the function gives for arrays."""
        # TensorFlow's arrays are the student's inputs themselves, not copies.
        inputs = tf.nest.map_structure(np.array, inputs)
        with self._lock:
            return self.function(inputs)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the fingerprint that was given.

        Raises:
            ConfigurationError: None was given.
        """
        if self._fingerprint is None:
            raise ConfigurationError(
                f"A cache of the teacher {self.name!r}, a Python function, would not notice when "
                "its answers change. Pass fingerprint= to CallableTeacher: a text that you change "
                'with the model behind the function, such as "resnet50 epoch 30".'
            )
        return hashlib.sha256(f"{self.outputs}\n{self._fingerprint}".encode()).hexdigest()


def _shape(given: Shape | int | None) -> Shape | None:
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
