"""Finds what in a model's configuration would run code, or needs code that Keras lacks.

A Keras file may carry Python bytecode, or name any function of any installed module to be called
while it is loaded. So the configuration is judged before Keras sees it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from kdtflite.errors import ModelFileError
from kdtflite.models.model_files import ModelFile

__all__ = ["refuse_untrusted"]

# Layers that hold Python bytecode, pickles or foreign graphs.
_CODE_CARRIERS = frozenset(
    {"__lambda__", "FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TensorFlowOpLayer"}
    | {"TorchModuleWrapper"}
)
# Parts of TensorFlow that a TFOpLambda layer could call to read or write files or run Python.
_DANGEROUS_OPERATIONS = frozenset(
    {"autograph", "compat", "data", "debugging", "distribute", "experimental", "io"}
    | {"load_library", "load_op_library", "numpy_function", "print", "profiler", "py_function"}
    | {"raw_ops", "saved_model", "summary", "sysconfig", "train"}
)
# Functions of TensorFlow that still go through their first version, by its name.
_HARMLESS_V1 = frozenset(
    {"boolean_mask", "floor_div", "gather", "gather_nd", "nn", "norm", "pad", "shape", "size"}
    | {"squeeze", "transpose"}
)
# Optimizer, loss and metrics: models are loaded without them.
_NOT_LOADED = frozenset({"compile_config", "training_config"})
# What Keras 2 saves as layers beside the classes in keras.layers.
_OTHER_LAYERS = frozenset(
    {"ClassMethod", "ClusterWeights", "Functional", "InstanceMethod", "InstanceProperty", "Model"}
    | {"PruneLowMagnitude", "QuantizeLayer", "QuantizeWrapper", "QuantizeWrapperV2", "Sequential"}
    | {"SlicingOpLambda", "TFOpLambda"}
)
_OWN_PACKAGES = frozenset({"keras", "tf_keras", "tensorflow_model_optimization", "kdtflite"})


def refuse_untrusted(file: ModelFile, *, unsafe: bool, custom_objects: Mapping[str, Any]) -> None:
    """Raises if loading the file would run code from it, or needs a class that is not known.

    Args:
        file: The opened file.
        unsafe: Let code through.
        custom_objects: Classes and functions that the caller vouches for, by name.

    Raises:
        ModelFileError: Naming the layer and what to do.
    """
    for layer, node in (pair for config in file.configs for pair in _nodes(config, "")):
        kind = str(node.get("class_name", ""))
        where = f"layer {layer!r}" if layer else "its configuration"
        if not unsafe and _carries_code(kind, node):
            raise ModelFileError(
                f"{file.path} carries code: {where} is or holds a {_shown(kind, node)}, which runs "
                "when the file is loaded. Pass unsafe=True / --unsafe if you trust the file, or "
                "replace that layer by built-in ones."
            )
        foreign = _foreign(kind, node, file.generation, custom_objects)
        if foreign:
            raise ModelFileError(
                f"{file.path} needs custom code: {where} is or uses {foreign}, which is not part "
                "of Keras. Import the module that registers it "
                "(keras.utils.register_keras_serializable) and pass it in custom_objects=, or "
                "rebuild the model with built-in layers."
            )


def _nodes(config: Any, layer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every dict of a configuration, with the name of the layer that it belongs to."""
    if isinstance(config, list | tuple):
        for value in config:
            yield from _nodes(value, layer)
    if not isinstance(config, dict):
        return
    inner = config.get("config")
    if isinstance(inner, dict) and isinstance(inner.get("name"), str):
        layer = inner["name"]
    yield layer, config
    for key, value in config.items():
        if key not in _NOT_LOADED:
            yield from _nodes(value, layer)


def _carries_code(kind: str, node: dict[str, Any]) -> bool:
    if kind.rsplit(">", 1)[-1] in _CODE_CARRIERS:
        return True
    config = node.get("config")
    if kind != "TFOpLambda" or not isinstance(config, dict):
        return False
    parts = str(config.get("function")).split(".")
    if parts[:2] == ["compat", "v1"] and parts[2:3] and parts[2] in _HARMLESS_V1:
        parts = parts[2:]
    return any(part in _DANGEROUS_OPERATIONS for part in parts)


def _shown(kind: str, node: dict[str, Any]) -> str:
    if kind == "TFOpLambda":
        return f"call of {node['config']['function']}"
    return "Lambda" if kind == "__lambda__" else kind


def _foreign(
    kind: str, node: dict[str, Any], generation: int, custom_objects: Mapping[str, Any]
) -> str | None:
    """Returns how to call what a node refers to outside Keras and the known objects, or None."""
    if not kind or "config" not in node or kind in _CODE_CARRIERS:
        return None
    name = str(node["config"]) if kind == "function" else kind
    if _is_known(name, node.get("registered_name"), custom_objects):
        return None
    module = node.get("module")
    root = str(module or "").split(".")[0]
    if root == "kdtflite":
        # Our own objects register themselves when their module is imported.
        import_module(str(module))
        return None
    if kind == "function":
        harmless = root in _OWN_PACKAGES | {"", "builtins"} and _is_activation(name)
        return None if harmless else f"the function {name!r} (module {module})"
    if ">" in kind:
        return f"the class {kind!r}"
    if "module" not in node:
        # .h5 files and SavedModels name their layers' classes only.
        known = generation == 3 or not _is_layer(node) or _is_keras2_layer(kind)
        return None if known else f"the class {kind!r}"
    if module is None:
        # Both Keras write the module of their own classes and leave it out for registered ones.
        return f"the class {node.get('registered_name') or kind!r}"
    return None if root in _OWN_PACKAGES else f"the class {module}.{kind}"


def _is_layer(node: dict[str, Any]) -> bool:
    config = node["config"]
    return isinstance(config, dict) and "name" in config and "trainable" in config


def _is_keras2_layer(kind: str) -> bool:
    import tf_keras as keras

    return hasattr(keras.layers, kind) or kind in _OTHER_LAYERS


def _is_known(name: str, registered: Any, custom_objects: Mapping[str, Any]) -> bool:
    import tf_keras as keras

    names = {name, str(registered)} - {"None"}
    if any(item in custom_objects for item in names):
        return True
    if any(keras.utils.get_registered_object(item) is not None for item in names):
        return True
    keras3 = sys.modules.get("keras")
    return keras3 is not None and any(
        keras3.saving.get_registered_object(item) is not None for item in names
    )


def _is_activation(name: str) -> bool:
    import tf_keras as keras

    from kdtflite.models.activations import KERAS3_ACTIVATIONS

    return name in KERAS3_ACTIVATIONS or hasattr(keras.activations, name)
