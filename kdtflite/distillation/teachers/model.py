"""A Keras model as a teacher."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.distillation.outputs import resolve_outputs, to_logits
from kdtflite.distillation.step import Observed
from kdtflite.distillation.taps import TappedModel
from kdtflite.distillation.teachers.base import (
    Shape,
    Teacher,
    check_inputs_fit,
    get_input_specs,
    preprocess_specs,
)
from kdtflite.errors import UnsupportedModelError
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.inspect import find_output_step
from kdtflite.models.keras_internals import flatten_layers

__all__ = ["ModelTeacher"]


class ModelTeacher(Teacher):
    """A frozen Keras model that gives logits for the student's inputs.

    It is run with training=False and without gradient.

    Args:
        model: A tf_keras or Keras 3 model with one output, shape (batch, ..., classes).
        preprocessing: Turns the student's inputs into the teacher's (another size or scaling);
            TensorFlow operations only, so that it runs inside the training step.
        outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or "auto"
            to infer it from the last layer.

    Raises:
        UnsupportedModelError: It is not a built Sequential or Functional model with one output.
        ConfigurationError: There is no such kind of outputs, or the last layer does not show it.
    """

    differentiable = True

    def __init__(
        self,
        model: Any,
        *,
        preprocessing: Callable[[Any], Any] | None = None,
        outputs: str = "auto",
    ) -> None:
        self.model = as_tf_keras(model)
        check_ends(self.model, role="teacher")
        self.name = self.model.name
        self.preprocessing = preprocessing
        self.outputs = resolve_outputs(self.model, outputs, role="teacher")
        self.output_shape = tuple(self.model.output_shape)
        self.output_step = find_output_step(self.model)
        self._tapped = TappedModel(self.model, (), role="teacher")

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, ..., classes), for the student's inputs `x`."""
        return self.observe(x).logits

    def tap(self, layers: Iterable[str]) -> dict[str, Shape]:  # noqa: D102
        self._tapped = TappedModel(self.model, layers, role="teacher")
        return self._tapped.shapes

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:  # noqa: D102
        if self.preprocessing is not None:
            x = self.preprocessing(x)
        outputs, seen = self._tapped.observe(x, training=False, recording=recording)
        logits = to_logits(outputs, self.outputs, step=self.output_step)
        if recording is not None:  # input gradients have to pass
            return replace(seen, logits=logits)
        features = {path: tf.stop_gradient(tensor) for path, tensor in seen.features.items()}
        return replace(seen, logits=tf.stop_gradient(logits), features=features)

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless the teacher takes what the student takes."""
        given = tf.nest.flatten(preprocess_specs(self.preprocessing, get_input_specs(student)))
        check_inputs_fit(given, self.model.inputs, preprocessed=self.preprocessing is not None)

    def fingerprint(self) -> str:  # noqa: D102
        digest = hashlib.sha256(f"{self.outputs}\n".encode())
        for layer in flatten_layers(self.model):
            if not hasattr(layer, "layers"):  # a nested model is its layers
                digest.update(f"{type(layer).__name__} {_describe(layer)}\n".encode())
        for weight in self.model.get_weights():
            digest.update(f"{weight.shape}{weight.dtype}".encode())
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()


def _describe(layer: Any) -> str:
    """Returns the layer's configuration without names, which count up in a process."""
    config = {key: value for key, value in layer.get_config().items() if "name" not in key}
    return json.dumps(config, sort_keys=True, default=lambda value: type(value).__name__)


def check_ends(model: Any, *, role: str) -> None:
    """Raises UnsupportedModelError unless `model` is Functional or Sequential with one output."""
    if not getattr(model, "inputs", None) or not model.outputs:
        raise UnsupportedModelError(
            f"Expected a Sequential or Functional {role}. Received: {model.name!r}, a "
            f"{type(model).__name__} whose inputs and outputs cannot be seen. Build it with "
            "keras.Model(inputs, outputs)."
        )
    if len(model.outputs) != 1:
        raise UnsupportedModelError(
            f"Expected a {role} with one output. Received: {role} {model.name!r} with "
            f"{len(model.outputs)}: {', '.join(model.output_names)}. "
            + (
                "Train all of them with kdtflite.distillation.MultiTaskDistiller, or build a model "
                "with one: keras.Model(model.inputs, model.outputs[0])."
                if role == "student"
                else "Build a model with one: keras.Model(model.inputs, model.outputs[0])."
            )
        )
