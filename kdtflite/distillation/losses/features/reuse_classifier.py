"""reuse_classifier: a student that ends in its teacher's classifier (arXiv 2203.14001)."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from kdtflite.errors import ConfigurationError, ShapeMismatchError, UnsupportedModelError, choose
from kdtflite.models.as_graph import as_graph
from kdtflite.models.policy import use_custom_layers, use_float32

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
        student_layer: The last layer of the student to keep, before its pooling.
        teacher_layer: The teacher's layer after which everything is copied, before its pooling.
        factor: The bottleneck has 1/factor of the channels of the teacher's layer.

    Returns:
        A float32 Functional model with the student's name that shares no weights with either.
        `quantize_aware` and `convert` take it as any other. `SimpleKD` alone, without hard
        labels, trains nothing behind the projector in any case.

    Raises:
        ConfigurationError: There is no such layer, no layer after the teacher's, or `factor` is
            below 1.
        UnsupportedModelError: The teacher's output depends on earlier layers other than through
            `teacher_layer`.
        ShapeMismatchError: A map is paired with a vector, or the classifier cannot take the size.
    """
    student, teacher = as_graph(student), as_graph(teacher)
    if factor < 1:
        raise ConfigurationError(f"Expected a factor of at least 1. Received: factor={factor}.")
    features = _find_output(student, student_layer, "student")
    teacher_features = _find_output(teacher, teacher_layer, "teacher")
    if features.shape.rank != teacher_features.shape.rank or features.shape.rank not in (2, 3, 4):
        raise ShapeMismatchError(
            "Expected layers that both give maps, or both vectors. Received: student layer "
            f"{student_layer!r} {tuple(features.shape)}, teacher layer {teacher_layer!r} "
            f"{tuple(teacher_features.shape)}. Choose layers of the same kind."
        )
    with use_float32(), use_custom_layers(student), use_custom_layers(teacher):
        classifier = _copy_classifier(teacher, teacher_features, teacher_layer)
        projected = _project(features, teacher_features.shape[-1], factor)
        try:
            # Called layer by layer: a model inside the model would not be fake-quantized.
            outputs = classifier.call(projected)
        except ValueError as error:
            raise ShapeMismatchError(
                f"The teacher's layers after {teacher_layer!r} cannot take maps of another size. "
                f"Expected {tuple(teacher_features.shape)}. Received: {tuple(projected.shape)} "
                f"from the student's {student_layer!r}. Choose a student layer of the teacher's "
                "size."
            ) from error
        joined = keras.Model(student.inputs, outputs)
        # Copied once more, so that no layer is shared with the models it came from.
        copy = keras.models.clone_model(joined)
        copy.set_weights(joined.get_weights())
    return keras.Model(copy.inputs, copy.outputs, name=student.name)


def _find_output(model: keras.Model, name: str, role: str) -> Any:
    layers = {layer.name: layer for layer in model.layers}
    output = layers[choose(name, layers, what=f"layer of the {role}")].get_output_at(0)
    if isinstance(output, list | tuple):
        raise ConfigurationError(
            f"Expected a layer of the {role} with one output. Received: {name!r}, with "
            f"{len(output)}."
        )
    return output


def _copy_classifier(teacher: keras.Model, features: Any, teacher_layer: str) -> keras.Model:
    if any(output is features for output in teacher.outputs):
        raise ConfigurationError(
            f"Expected a layer of the teacher before its classifier. Received: {teacher_layer!r}, "
            "its output."
        )
    try:
        tail = keras.Model(features, teacher.output)
    except ValueError as error:
        raise UnsupportedModelError(
            f"The output of {teacher.name!r} depends on more than the layer {teacher_layer!r}. "
            "Choose a layer that everything passes through, such as the last before the pooling."
        ) from error

    def rename(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "name": _PREFIX + layer.name})

    classifier = keras.models.clone_model(tail, clone_function=rename)
    classifier.set_weights(tail.get_weights())
    classifier.trainable = False
    return classifier


def _project(features: Any, channels: int, factor: int) -> Any:
    narrow = max(channels // factor, 1)
    rank = features.shape.rank
    bottleneck = [("reduce", narrow, 1), ("mix", narrow, 3), ("expand", channels, 1)]
    for name, width, kernel in bottleneck:
        if rank == 2 and name == "mix":
            continue  # a vector has no neighbors
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
