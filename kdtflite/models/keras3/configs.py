"""Builds a tf_keras layer from the configuration of a Keras 3 layer."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

import numpy as np
import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.activations import KERAS3_ACTIVATIONS
from kdtflite.models.layers import APPLICATION_LAYERS

__all__ = [
    "UnsupportedSettingError",
    "build_layer",
    "describe",
    "is_built_in",
    "is_supported",
    "list_arguments",
    "refuse_layer",
]

# Layers that compute the same in both generations once their configuration is adapted. Every
# conversion runs both models and compares them, so each name is checked every time.
_SUPPORTED_LAYERS = frozenset(
    [
        "Activation",
        "ActivityRegularization",
        "Add",
        "AdditiveAttention",
        "AlphaDropout",
        "Attention",
        "Average",
        "AveragePooling1D",
        "AveragePooling2D",
        "AveragePooling3D",
        "BatchNormalization",
        "Bidirectional",
        "CategoryEncoding",
        "CenterCrop",
        "Concatenate",
        "Conv1D",
        "Conv1DTranspose",
        "Conv2D",
        "Conv2DTranspose",
        "Conv3D",
        "Conv3DTranspose",
        "ConvLSTM1D",
        "ConvLSTM2D",
        "ConvLSTM3D",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "Dense",
        "DepthwiseConv1D",
        "DepthwiseConv2D",
        "Discretization",
        "Dot",
        "Dropout",
        "ELU",
        "EinsumDense",
        "Embedding",
        "Flatten",
        "GRU",
        "GRUCell",
        "GaussianDropout",
        "GaussianNoise",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "GroupNormalization",
        "Identity",
        "HashedCrossing",
        "Hashing",
        "IntegerLookup",
        "LSTM",
        "LSTMCell",
        "LayerNormalization",
        "LeakyReLU",
        "Masking",
        "MaxPooling1D",
        "MaxPooling2D",
        "MaxPooling3D",
        "Maximum",
        "Minimum",
        "MultiHeadAttention",
        "Multiply",
        "Normalization",
        "PReLU",
        "RNN",
        "Permute",
        "RandomBrightness",
        "RandomContrast",
        "RandomCrop",
        "RandomFlip",
        "RandomRotation",
        "RandomTranslation",
        "RandomZoom",
        "ReLU",
        "RepeatVector",
        "Rescaling",
        "Reshape",
        "Resizing",
        "SeparableConv1D",
        "SeparableConv2D",
        "SimpleRNN",
        "SimpleRNNCell",
        "Softmax",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "StackedRNNCells",
        "Subtract",
        "TimeDistributed",
        "UnitNormalization",
        "UpSampling1D",
        "UpSampling2D",
        "UpSampling3D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ZeroPadding3D",
    ]
)

# Keras 3 arguments that choose random numbers or kernels, but do not change the computation.
_HARMLESS = frozenset({"seed", "use_cudnn", "flash_attention", "autocast"})


class UnsupportedSettingError(Exception):
    """TensorFlow has no equivalent of a setting of an operation; the message names it."""


def is_built_in(obj: Any) -> bool:
    """Says whether the class of `obj` itself, not only a base of it, belongs to Keras 3."""
    return type(obj).__module__.split(".")[0] == "keras"


def is_supported(layer: Any) -> bool:
    """Says whether tf_keras has a layer for a built-in layer of Keras 3."""
    return type(layer).__name__ in _SUPPORTED_LAYERS | set(APPLICATION_LAYERS)


def describe(layer: Any) -> str:
    """Returns how messages name a layer: its name and class."""
    return f"layer {getattr(layer, 'name', '?')!r} ({type(layer).__name__})"


def refuse_layer(where: str, why: str, advice: str) -> NoReturn:
    """Raises the UnsupportedModelError of one layer."""
    raise UnsupportedModelError(
        f"The Keras 3 model cannot be carried over to tf_keras because of {where}: {why} {advice}"
    )


def build_layer(layer: Any, /, **inner: Any) -> keras.layers.Layer:
    """Builds the tf_keras layer that computes the same as a Keras 3 layer, without its weights.

    Args:
        layer: A Keras 3 layer that `is_supported`.
        inner: The arguments that hold layers (`layer`, `cell`, `cells`), already rebuilt.

    Raises:
        UnsupportedModelError: The layer uses something that tf_keras lacks.
    """
    name = type(layer).__name__
    target = APPLICATION_LAYERS.get(name) or getattr(keras.layers, name)
    where = describe(layer)
    config = {key: value for key, value in layer.get_config().items() if key not in inner}
    if config.get("stateful"):
        refuse_layer(where, "it is stateful.", "Build it with stateful=False.")
    if name == "LeakyReLU":
        config["alpha"] = config.pop("negative_slope")
    if name == "Normalization" and config.get("mean") is None:
        # As constants in the configuration the statistics survive clone_model and .h5 files,
        # where tf_keras loses adapted ones.
        config["mean"], config["variance"] = (array.tolist() for array in layer.get_weights()[:2])
    if name == "IntegerLookup":
        # The configuration lacks an adapted vocabulary; its size follows from the vocabulary.
        del config["vocabulary_size"]
        config["vocabulary"] = [int(token) for token in layer.get_vocabulary(False)]
        config["dtype"] = "int64" if layer.output_mode == "int" else "float32"
    accepted = list_arguments(target)
    arguments: dict[str, Any] = {}
    for key, value in config.items():
        if key in accepted:
            arguments.update(_mend(key, value, where))
        elif key not in _HARMLESS and not _is_off(type(layer), key, value):
            refuse_layer(
                where,
                f"its argument {key}={value!r} has no equal in tf_keras.",
                f"Build the layer without `{key}`.",
            )
    # Not from_config: that of MultiHeadAttention wants input shapes, which the call provides.
    return target(**arguments, **inner)


def _mend(key: str, value: Any, where: str) -> dict[str, Any]:
    """Returns the argument as tf_keras wants it, or nothing where the default will do."""
    if key == "dtype":
        return {key: _get_dtype_name(value, where)}
    if key.endswith("_initializer"):
        return _mend_initializer(key, value)
    if key.endswith("_regularizer"):
        return {key: _rebuild(value, keras.regularizers, "regularizer", where)}
    if key.endswith("_constraint"):
        return {key: _rebuild(value, keras.constraints, "constraint", where)}
    if key.endswith("activation"):
        return {key: _mend_activation(value, where)}
    if key == "seed":
        return {key: value if isinstance(value, int) else None}
    if isinstance(value, dict) and "class_name" in value:
        refuse_layer(
            where,
            f"its argument {key} holds a {value['class_name']}.",
            "Pass plain numbers, strings or lists there.",
        )
    return {key: value}


def _get_dtype_name(value: Any, where: str) -> str:
    if isinstance(value, dict):
        name = (value.get("config") or {}).get("name")
        if value.get("class_name") != "DTypePolicy" or name is None:
            refuse_layer(
                where,
                f"its dtype policy is a {value.get('class_name')}.",
                "Pass the float model, before `model.quantize()`; kdtflite quantizes it.",
            )
        return str(name)
    return str(value)


def _mend_initializer(key: str, value: Any) -> dict[str, Any]:
    # Every weight is copied, so the default may replace an initializer that tf_keras lacks.
    if not isinstance(value, dict):
        return {key: value} if value is None or isinstance(value, str) else {}
    target = getattr(keras.initializers, str(value.get("class_name")), None)
    if target is None or value.get("registered_name"):
        return {}
    kept = {
        name: item
        for name, item in (value.get("config") or {}).items()
        if name in list_arguments(target) and isinstance(item, int | float | str | None)
    }
    return {key: target(**kept)}


def _rebuild(value: Any, namespace: Any, kind: str, where: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    class_name = value.get("class_name") if isinstance(value, dict) else type(value).__name__
    target = getattr(namespace, str(class_name), None)
    if target is None or not isinstance(value, dict) or value.get("registered_name"):
        refuse_layer(
            where,
            f"its {kind} {class_name} is not one of Keras' own.",
            f"Use a built-in {kind}, or leave it out: it plays no part in inference.",
        )
    return target(**(value.get("config") or {}))


def _mend_activation(value: Any, where: str) -> Any:
    if value is None:
        return None
    if isinstance(value, str) and value in KERAS3_ACTIVATIONS:
        return KERAS3_ACTIVATIONS[value]
    name = value if isinstance(value, str) else _name_activation(value)
    refuse_layer(
        where,
        f"its activation {name} has no equal in tf_keras.",
        "Use a separate layer for it (ReLU, LeakyReLU, PReLU, ELU, Softmax), or one of: "
        f"{', '.join(sorted(KERAS3_ACTIVATIONS))}.",
    )


def _name_activation(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    config = value.get("config")
    if "class_name" not in value or value["class_name"] == "__lambda__":
        return "lambda"  # Keras 3 stores only its bytecode
    return repr(config if isinstance(config, str) else value.get("class_name"))


def list_arguments(target: type) -> set[str]:
    """Returns the names of all arguments of a constructor, including those of its bases."""
    names: set[str] = set()
    for base in target.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        names |= set(parameters)
        if base is keras.layers.Layer:
            names.add("activity_regularizer")
        if base is keras.layers.RNN:
            names.add("zero_output_for_mask")  # read from **kwargs
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names - {"self", "args", "kwargs"}


def _is_off(source: type, key: str, value: Any) -> bool:
    """Says whether an argument that tf_keras lacks has a value that leaves it without effect."""
    if value is None or value is False:
        return True
    # Both have the same default layout; the constructor of Keras 3 stores the resolved name.
    if key == "data_format":
        return bool(value == "channels_last")
    for base in source.__mro__:
        if "__init__" not in vars(base):
            continue
        parameter = inspect.signature(base.__init__).parameters.get(key)  # type: ignore[misc]
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return bool(np.array_equal(value, parameter.default))
    return False
