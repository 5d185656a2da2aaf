"""Refuses configurations that would run code or read files, or need code that Keras lacks.

A configuration names the classes and functions that rebuild the model, and Keras fetches whatever
it names. So each name is looked up in lists of what models consist of, before Keras reads any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from kdtflite.errors import ModelFileError
from kdtflite.models.trust.allowed_names import (
    allow_class,
    allow_function,
    allow_name,
    is_from_keras,
)
from kdtflite.models.trust.allowed_operations import METHODS, OPERATIONS, PROPERTIES

if TYPE_CHECKING:
    from kdtflite.models.model_files import ModelFile

__all__ = ["refuse_untrusted"]

# Not loaded where the model itself is: its optimizer, loss and metrics.
_NOT_LOADED = frozenset({"compile_config", "training_config"})
# Objects that hold Python bytecode, pickles or foreign graphs.
_CODE_CARRIERS = frozenset(
    {"__lambda__", "FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TensorFlowOpLayer"}
    | {"TorchModuleWrapper"}
)
# How Keras writes values that JSON lacks. Nothing is looked up for them.
_VALUES = frozenset(
    {"CompositeTensor", "TensorShape", "TypeSpec", "__bytes__", "__ellipsis__", "__keras_tensor__"}
    | {"__numpy__", "__slice__", "__tensor__", "__tuple__"}
)
_TYPE_SPECS = frozenset(
    {
        ("tensorflow.python.framework.sparse_tensor", "SparseTensorSpec"),
        ("tensorflow.python.framework.tensor", "TensorSpec"),
        ("tensorflow.python.framework.tensor_spec", "TensorSpec"),
        ("tensorflow.python.ops.ragged.ragged_tensor", "RaggedTensorSpec"),
    }
)
# Settings whose text names a function or class.
_NAMING = {
    "activation": "activations",
    "constraint": "constraints",
    "initializer": "initializers",
    "loss": "losses",
    "metrics": "metrics",
    "optimizer": "optimizers",
    "regularizer": "regularizers",
}
# Settings whose text is the name of a file that Keras reads.
_FILES = frozenset({"filepath", "vocabulary", "vocabulary_file"})


class _Fault(NamedTuple):
    """What is wrong with a part of a configuration.

    Attributes:
        what: The part, for the message.
        is_code: It would run code or read files, so `unsafe` allows it. Otherwise it is an unknown
            class or function, which only `custom_objects` provides.
    """

    what: str
    is_code: bool


def refuse_untrusted(file: ModelFile, *, unsafe: bool, custom_objects: Mapping[str, Any]) -> None:
    """Raises if loading the file would run code, read another file, or needs an unknown class.

    Args:
        file: The opened file.
        unsafe: Allow code in the file.
        custom_objects: Classes and functions that the caller trusts, by name.

    Raises:
        ModelFileError: The message names the layer, what it is or holds, and what to do.
    """
    checker = _Checker(file.generation, custom_objects)
    for config in file.configs:
        for layer, key, value in _walk(config):
            fault = checker.find_fault(key, value)
            if fault is None or (unsafe and fault.is_code):
                continue
            where = f"layer {layer[:100]!r}" if layer else "its configuration"
            if fault.is_code:
                raise ModelFileError(
                    f"{file.path} carries code: {where} is or holds {fault.what}, which would run "
                    "code or read files when the model is loaded. Pass unsafe=True / --unsafe if "
                    "you trust the file, or replace that layer by built-in ones."
                )
            raise ModelFileError(
                f"{file.path} needs custom code: {where} is or uses {fault.what}, which is not "
                "part of Keras. Import the module that registers it "
                "(keras.utils.register_keras_serializable) and pass it in custom_objects=, or "
                "rebuild the model with built-in layers."
            )


def _walk(config: Any) -> Iterator[tuple[str, str, Any]]:
    """Yields every object and text of a configuration, with its layer's name and its key."""
    # A stack, not recursion: the order is that of the text.
    waiting: list[tuple[str, str, Any]] = [("", "", config)]
    root = True
    while waiting:
        layer, key, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(layer, key, inner) for inner in reversed(value)]
        elif isinstance(value, dict):
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                layer = inner["name"]
            yield layer, key, value
            skipped: frozenset[str] = _NOT_LOADED if root else frozenset()
            waiting += [
                (layer, name, item) for name, item in reversed(value.items()) if name not in skipped
            ]
        elif isinstance(value, str):
            yield layer, key, value
        root = False


class _Checker:
    """Looks the parts of one file's configurations up in the lists."""

    def __init__(self, generation: int, custom_objects: Mapping[str, Any]) -> None:
        self._generation = generation
        self._custom_objects = custom_objects

    def find_fault(self, key: str, value: dict[str, Any] | str) -> _Fault | None:
        """Returns what is wrong with an object or a text under `key`, or None."""
        if isinstance(value, str):
            return self._check_text(key, value)
        if "class_name" not in value:
            return None
        kind = value["class_name"]
        if not isinstance(kind, str):
            return _Fault(f"a class named {_show(kind)}", is_code=False)
        module = value.get("module")
        if kind.rsplit(">", 1)[-1] in _CODE_CARRIERS:
            return _Fault(f"a {'Lambda' if kind == '__lambda__' else _show_name(kind)}", True)
        if kind == "function":
            return self._check_function(value)
        if kind == "__typespec__":
            named = (module, value.get("spec_name"))
            plain = any(named == spec for spec in _TYPE_SPECS) and not value.get("registered_name")
            return None if plain else _Fault(f"the type {_show(named)}", is_code=False)
        if kind in _VALUES and not module:
            return None
        return self._check_class(kind, value) or _check_operation(kind, value.get("config"))

    def _check_text(self, key: str, text: str) -> _Fault | None:
        if key == "name" and (text.startswith("/") or ".." in PurePosixPath(text).parts):
            return _Fault(f"the name {_show(text)}, which leads to another folder", is_code=True)
        if key in _FILES:
            return _Fault(f"the file {_show(text)} as its {key}", is_code=True)
        place = _NAMING.get(key.rsplit("_", 1)[-1])
        if place is None or self._is_known(text) or allow_name(place, text, self._generation):
            return None
        return _Fault(f"the {place[:-1]} {_show(text)}", is_code=False)

    def _check_function(self, node: dict[str, Any]) -> _Fault | None:
        name, module = node.get("config"), node.get("module")
        registered = node.get("registered_name")
        if isinstance(name, str):
            if self._is_known(name):
                return None
            plain = registered in (None, name, "function")
            if plain and allow_function(module, name, self._generation):
                return None
            # Keras looks the name up in the module, not in the register, and so imports the module.
            found = self._find_known(registered)
            same = found is not None and str(registered).rsplit(">", 1)[-1] == name
            if same and module in (None, "builtins", getattr(found, "__module__", None)):
                return None
        unknown = f"{_show(name)} (module {_show(module)})"
        return _Fault(f"the function {unknown}", is_code=False)

    def _check_class(self, kind: str, node: dict[str, Any]) -> _Fault | None:
        """Returns what is wrong with a class, however the two generations look it up."""
        module, registered = node.get("module"), node.get("registered_name")
        short = kind.rsplit(">", 1)[-1]
        if registered is not None and self._is_known(registered):
            # It is found by that name; a reader of old files goes by the class alone.
            if short == str(registered).rsplit(">", 1)[-1] or self._is_known(kind):
                return None
        elif registered is None or registered == kind or str(registered).endswith(f">{kind}"):
            if self._is_known(kind) and not module:
                return None
            if "." not in short and allow_class(module, kind, self._generation):
                return None
        if module is None or module == "":
            return _Fault(f"the class {_show(registered or kind)}", is_code=False)
        where = f"the class {_show(f'{module}.{kind}')}"
        return _Fault(where, is_code="." not in kind and is_from_keras(module))

    def _is_known(self, name: Any) -> bool:
        return self._find_known(name) is not None

    def _find_known(self, name: Any) -> Any:
        """Returns what the caller, or a module that was imported, registered under a name."""
        if not isinstance(name, str) or not name:
            return None
        if name in self._custom_objects:
            return self._custom_objects[name]
        if self._generation == 3:
            import keras
        else:
            import tf_keras as keras
        return keras.saving.get_registered_object(name)


def _check_operation(kind: str, config: Any) -> _Fault | None:
    """Returns what is wrong with a layer that calls what its settings name."""
    config = config if isinstance(config, dict) else {}
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        name, allowed = config.get("function"), OPERATIONS
    elif kind == "ClassMethod":
        name, allowed = f"{config.get('cls_symbol')}.{config.get('method_name')}", METHODS
    elif kind in ("InstanceMethod", "InstanceProperty"):
        name, allowed = config.get("attr_name"), PROPERTIES
    else:
        return None
    known = isinstance(name, str) and name in allowed
    return None if known else _Fault(f"a call of {_show_name(name)}", is_code=True)


def _show(value: Any) -> str:
    """Returns a name from a file as messages show it: short, on one line, escaped."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:110]} ...'"


def _show_name(value: Any) -> str:
    return _show(value)[1:-1] if isinstance(value, str) else _show(value)
