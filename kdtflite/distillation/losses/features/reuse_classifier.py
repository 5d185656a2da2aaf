"""reuse_classifier: a student that ends in its teacher's classifier (arXiv 2203.14001)."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from kdtflite.errors import ConfigurationError, ShapeMismatchError, UnsupportedModelError, choose
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.float32 import custom_layers, float32_policy, in_float32

__all__ = ["PROJECTOR", "reuse_classifier"]

PROJECTOR = "simple_kd_projector"
_PREFIX = "simple_kd_"


def reuse_classifier(
    student: Any, teacher: Any, *, student_layer: str, teacher_layer: str, factor: int = 2
) -> keras.Model:
    """Returns a student whose last layers are a frozen copy of its teacher's.

    The student up to `student_layer`, then a projector to the teacher's channels, then copies of
    all the teacher's layers after `teacher_layer`. The projector is the paper's bottleneck: 1x1,
    3x3 and 1x1 convolutions without bias, each with batch normalization and ReLU, the first two
    with 1/`factor` of the teacher's channels; two Dense layers for vectors. Tap its output, the
    layer "simple_kd_projector", in `SimpleKD`. It ends in ReLU, so the teacher's layer should be
    one whose output is never negative.

    Args:
        student: A tf_keras or Keras 3 model; it is copied, with its weights.
        teacher: The same kind of model; its layers after `teacher_layer` are copied.
        student_layer: The last layer that is kept of the student, before its pooling.
        teacher_layer: The last layer that is not taken from the teacher, before its pooling.
        factor: How many times fewer channels the bottleneck has than the teacher's layer.

    Returns:
        A float32 Functional model, named as the student, that shares no weights with either.
        `quantize_aware` and `convert` take it as any other. `SimpleKD` alone, without hard
        labels, trains nothing behind the projector, whatever is frozen there.

    Raises:
        ConfigurationError: There is no such layer, none after it in the teacher, or `factor` is
            below 1.
        UnsupportedModelError: The teacher's output also depends on layers before `teacher_layer`
            other than through it.
        ShapeMismatchError: Maps against vectors, or sizes that the classifier cannot take.
    """
    if factor < 1:
        raise ConfigurationError(f"Expected a factor of at least 1. Received: factor={factor}.")
    student, teacher = in_float32(as_tf_keras(student)), in_float32(as_tf_keras(teacher))
    features = _output(student, student_layer, "student")
    taught = _output(teacher, teacher_layer, "teacher")
    if features.shape.rank != taught.shape.rank or features.shape.rank not in (2, 3, 4):
        raise ShapeMismatchError(
            "Expected layers that both give maps, or both vectors. Received: student layer "
            f"{student_layer!r} {tuple(features.shape)}, teacher layer {teacher_layer!r} "
            f"{tuple(taught.shape)}. Choose layers of the same kind."
        )
    with float32_policy(), custom_layers(student), custom_layers(teacher):
        classifier = _classifier(teacher, taught, teacher_layer)
        projected = _projected(features, taught.shape[-1], factor)
        try:
            # Called layer by layer: a model inside the model would not be fake-quantized.
            outputs = classifier.call(projected)
        except ValueError as error:
            raise ShapeMismatchError(
                f"The teacher's layers after {teacher_layer!r} cannot take maps of another size. "
                f"Expected {tuple(taught.shape)}. Received: {tuple(projected.shape)} from the "
                f"student's {student_layer!r}. Choose a student layer of the teacher's size."
            ) from error
        joined = keras.Model(student.inputs, outputs)
        # Copied once more, so that no layer is shared with the models it came from.
        copy = keras.models.clone_model(joined)
        copy.set_weights(joined.get_weights())
    return keras.Model(copy.inputs, copy.outputs, name=student.name)


def _output(model: keras.Model, name: str, role: str) -> Any:
    if not getattr(model, "inputs", None):
        raise UnsupportedModelError(
            f"Expected a Sequential or Functional {role}. Received: {model.name!r}, a "
            f"{type(model).__name__}, whose graph cannot be seen."
        )
    layers = {layer.name: layer for layer in model.layers}
    output = layers[choose(name, layers, what=f"layer of the {role}")].get_output_at(0)
    if isinstance(output, list | tuple):
        raise ConfigurationError(
            f"Expected a layer of the {role} with one output. Received: {name!r}, with "
            f"{len(output)}."
        )
    return output


def _classifier(teacher: keras.Model, taught: Any, teacher_layer: str) -> keras.Model:
    if any(output is taught for output in teacher.outputs):
        raise ConfigurationError(
            f"Expected a layer of the teacher before its classifier. Received: {teacher_layer!r}, "
            "its output."
        )
    try:
        tail = keras.Model(taught, teacher.output)
    except ValueError as error:
        raise UnsupportedModelError(
            f"The output of {teacher.name!r} depends on more than the layer {teacher_layer!r}. "
            "Choose a layer that everything passes through, such as the last before the pooling."
        ) from error

    def renamed(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "name": _PREFIX + layer.name})

    classifier = keras.models.clone_model(tail, clone_function=renamed)
    classifier.set_weights(tail.get_weights())
    classifier.trainable = False
    return classifier


def _projected(features: Any, channels: int, factor: int) -> Any:
    narrow = max(channels // factor, 1)
    rank = features.shape.rank
    bottleneck = [("reduce", narrow, 1), ("mix", narrow, 3), ("expand", channels, 1)]
    for name, width, kernel in bottleneck:
        if rank == 2 and name == "mix":
            continue  # a vector has no neighbours
        convolution = {"use_bias": False, "name": _PREFIX + name}
        if rank == 2:
            layer = keras.layers.Dense(width, **convolution)
        elif rank == 3:
            layer = keras.layers.Conv1D(width, kernel, padding="same", **convolution)
        else:
            layer = keras.layers.Conv2D(width, kernel, padding="same", **convolution)
        normalized = keras.layers.BatchNormalization(name=f"{_PREFIX}{name}_norm")(layer(features))
        last = name == "expand"
        features = keras.layers.ReLU(name=PROJECTOR if last else f"{_PREFIX}{name}_relu")(
            normalized
        )
    return features
