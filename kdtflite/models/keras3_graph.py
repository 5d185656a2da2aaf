"""A Keras 3 graph, rebuilt node by node with tf_keras layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tf_keras as keras

from kdtflite.errors import UnsupportedModelError
from kdtflite.models.activations import hard_sigmoid, hard_silu
from kdtflite.models.keras3_configs import (
    SUPPORTED_LAYERS,
    describe,
    is_built_in,
    layer_from_config,
    refuse_layer,
)

__all__ = ["Rebuilder", "input_configs", "kind_of_model", "map_references"]

_ADVICE_LAYER = (
    "Use the built-in Keras layer that computes the same, or rebuild the model with tf_keras "
    "(`import tf_keras as keras`)."
)
_ADVICE_OPERATION = (
    "Operations on tensors are understood where they are +, -, *, /, maximum or minimum of two "
    "tensors or of a tensor and a number, or a plain activation. Use a Keras layer instead "
    "(keras.layers.Reshape, Permute, Cropping2D, Rescaling ...)."
)


def kind_of_model(obj: Any) -> str | None:
    """Returns "sequential", "functional", "subclassed", or None for what is no Keras 3 model."""
    bases = {(base.__module__, base.__name__): base for base in type(obj).__mro__}
    for kind, key in (
        ("sequential", ("keras.src.models.sequential", "Sequential")),
        ("functional", ("keras.src.models.functional", "Functional")),
    ):
        if key in bases:
            # A subclass with its own train_step is fine; one with its own call() is opaque.
            return kind if type(obj).call is bases[key].call else "subclassed"  # type: ignore[attr-defined]
    return "subclassed" if ("keras.src.models.model", "Model") in bases else None


def map_references(structure: Any, function: Callable[[str, int, int], Any]) -> Any:
    """Maps `[layer name, node index, tensor index]` leaves inside lists and dicts."""
    if isinstance(structure, dict):
        return {key: map_references(value, function) for key, value in structure.items()}
    if len(structure) == 3 and isinstance(structure[0], str) and isinstance(structure[1], int):
        return function(*structure)
    return [map_references(value, function) for value in structure]


def input_configs(source: Any) -> dict[str, dict[str, Any]]:
    """Returns the configurations of a Keras 3 model's input layers, by name.

    The tensors in `model.inputs` have names of their own ("keras_tensor_5").
    """
    layers = source.get_config()["layers"]
    return {
        item["config"]["name"]: item["config"]
        for item in layers
        if item["class_name"] == "InputLayer"
    }


class Rebuilder:
    """Builds tf_keras layers and models for Keras 3 ones; shared layers stay shared.

    Usage: `check(model)`, then `model(model)`, then `copy_weights()` and `copy_trainable(model)`.
    """

    def __init__(self) -> None:
        self._targets: dict[int, keras.layers.Layer] = {}
        self._pairs: list[tuple[Any, keras.layers.Layer]] = []

    def check(self, source: Any) -> None:
        """Raises for the first layer, however deep, that cannot be carried over."""
        if isinstance(source, list | tuple):
            for layer in source:
                self.check(layer)
            return
        kind = kind_of_model(source)
        if kind == "subclassed":
            refuse_layer(
                f"model {source.name!r} ({type(source).__name__})",
                "it is a subclassed model, whose call() is Python code.",
                "Build it with the functional API, keras.Model(inputs, outputs), or rebuild it "
                "with tf_keras.",
            )
        if kind == "sequential":
            if not source.built or not source.inputs:
                raise UnsupportedModelError(
                    f"The Keras 3 model {source.name!r} has no input shape yet, so it has no "
                    "weights. Call model.build((None, ...)) or start it with keras.Input(...)."
                )
            self.check(source.layers)
        elif kind == "functional":
            self.check(source.layers)
        elif type(source).__name__ == "InputLayer" and is_built_in(source):
            if getattr(source, "sparse", False) or getattr(source, "ragged", False):
                refuse_layer(describe(source), "it is sparse or ragged.", "Use a dense input.")
        elif not is_built_in(source) or type(source).__name__ not in SUPPORTED_LAYERS:
            refuse_layer(describe(source), _why(source), _ADVICE_LAYER)
        elif type(source).__name__ == "TimeDistributed":
            self.check(source.layer)
        elif type(source).__name__ == "Bidirectional":
            self.check([source.forward_layer, source.backward_layer])

    def model(self, source: Any) -> keras.Model:
        """Rebuilds a Keras 3 Sequential or Functional model."""
        if id(source) not in self._targets:
            build = self._sequential if kind_of_model(source) == "sequential" else self._functional
            self._targets[id(source)] = build(source)
        return self._targets[id(source)]

    def layer(self, source: Any) -> keras.layers.Layer:
        """Rebuilds a layer, or a model used as one; the same source gives the same target."""
        if kind_of_model(source) is not None:
            return self.model(source)
        if id(source) not in self._targets:
            self._targets[id(source)] = self._leaf(source)
        return self._targets[id(source)]

    def copy_weights(self) -> None:
        """Copies weights layer by layer, in order, each checked by shape.

        Raises:
            UnsupportedModelError: A layer has other weights in tf_keras than in Keras 3.
        """
        for source, target in self._pairs:
            if type(source).__name__ == "Bidirectional":
                _copy(source.forward_layer, target.forward_layer)
                _copy(source.backward_layer, target.backward_layer)
            else:
                _copy(source, target)

    def copy_trainable(self, source: Any) -> None:
        """Copies the `trainable` flags, outer before inner: setting one sets all inside it."""
        self._targets[id(source)].trainable = source.trainable
        if kind_of_model(source) is not None:
            for layer in source.layers:
                if id(layer) in self._targets:
                    self.copy_trainable(layer)
        elif type(source).__name__ == "TimeDistributed":
            self.copy_trainable(source.layer)
        elif type(source).__name__ == "Bidirectional":
            target = self._targets[id(source)]
            target.forward_layer.trainable = source.forward_layer.trainable
            target.backward_layer.trainable = source.backward_layer.trainable

    def _sequential(self, source: Any) -> keras.Model:
        target = keras.Sequential(name=source.name)
        (config,) = input_configs(source).values()
        target.add(_input(config))
        for layer in source.layers:
            target.add(self.layer(layer))
        return target

    def _functional(self, source: Any) -> keras.Model:
        config = source.get_config()
        layers = {layer.name: layer for layer in source.layers}
        tensors: dict[tuple[str, int, int], Any] = {}

        def lookup(name: str, node: int, index: int) -> Any:
            return tensors[name, node, index]

        waiting = [
            (item, number, node)
            for item in config["layers"]
            for number, node in enumerate(item["inbound_nodes"] or [None])
        ]
        targets: dict[str, keras.layers.Layer] = {}
        while waiting:
            later = []
            for item, number, node in waiting:
                name = item["name"]
                if node is not None and not _is_ready(node, tensors):
                    later.append((item, number, node))
                    continue
                if item["class_name"] == "InputLayer":
                    outputs = _input(item["config"])
                elif name in layers:
                    args, kwargs = _arguments(node, lookup)
                    outputs = self.layer(layers[name])(*args, **kwargs)
                else:
                    args, kwargs = _arguments(node, lookup)
                    outputs = _operation(item, args, kwargs, targets)
                for index, tensor in enumerate(_flat(outputs)):
                    tensors[name, number, index] = tensor
            if len(later) == len(waiting):
                raise UnsupportedModelError(
                    f"The graph of the Keras 3 model {source.name!r} could not be followed past "
                    f"layer {later[0][0]['name']!r}. Save it to a .keras file, load it and try "
                    "again; if that fails too, rebuild it with tf_keras."
                )
            waiting = later
        return keras.Model(
            inputs=map_references(config["input_layers"], lookup),
            outputs=map_references(config["output_layers"], lookup),
            name=source.name,
        )

    def _leaf(self, source: Any) -> keras.layers.Layer:
        name = type(source).__name__
        if name == "TimeDistributed":
            # The inner layer is passed on as an object, and notes its own weights.
            return keras.layers.TimeDistributed(self.layer(source.layer), name=source.name)
        if name == "Bidirectional":
            forward, backward = (
                layer_from_config(inner) for inner in (source.forward_layer, source.backward_layer)
            )
            # tf_keras puts the prefixes before the names again.
            forward._name = forward.name.removeprefix("forward_")
            backward._name = backward.name.removeprefix("backward_")
            target = keras.layers.Bidirectional(
                forward, merge_mode=source.merge_mode, backward_layer=backward, name=source.name
            )
        else:
            target = layer_from_config(source)
        if name != "Normalization":  # its statistics are in its configuration
            self._pairs.append((source, target))
        return target


def _why(layer: Any) -> str:
    if type(layer).__name__ == "Lambda":
        return "a Lambda layer is Python code."
    if not is_built_in(layer):
        return "it is a custom layer."
    return "tf_keras has no layer that computes the same."


def _copy(source: Any, target: keras.layers.Layer) -> None:
    values = source.get_weights()
    received = [tuple(value.shape) for value in values]
    expected = [tuple(value.shape) for value in target.weights]
    if received != expected:
        refuse_layer(
            describe(source),
            f"its weights have the shapes {received}, tf_keras' layer expects {expected}.",
            _ADVICE_LAYER,
        )
    target.set_weights(values)


def _input(config: dict[str, Any]) -> Any:
    shape = config["batch_shape"]
    return keras.Input(
        tuple(shape[1:]), batch_size=shape[0], dtype=config["dtype"], name=config["name"]
    )


def _is_ready(node: dict[str, Any], tensors: dict[tuple[str, int, int], Any]) -> bool:
    found: list[tuple[str, int, int]] = []

    def note(name: str, number: int, index: int) -> None:
        found.append((name, number, index))

    _arguments(node, note)
    return all(reference in tensors for reference in found)


def _arguments(
    node: dict[str, Any], lookup: Callable[[str, int, int], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Returns a node's call arguments with its tensors looked up; None stands for unset."""
    kwargs = {key: _value(value, lookup) for key, value in node["kwargs"].items()}
    return (
        [_value(value, lookup) for value in node["args"]],
        {key: value for key, value in kwargs.items() if value is not None},
    )


def _value(value: Any, lookup: Callable[[str, int, int], Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_value(item, lookup) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__keras_tensor__":
        return lookup(*value["config"]["keras_history"])
    if value.get("class_name") == "__tuple__":
        return [_value(item, lookup) for item in value["items"]]
    return {key: _value(item, lookup) for key, item in value.items()}


def _flat(outputs: Any) -> list[Any]:
    """Flattens what a layer returned in Keras 3's order: dicts by sorted key."""
    if isinstance(outputs, dict):
        return [leaf for key in sorted(outputs) for leaf in _flat(outputs[key])]
    if isinstance(outputs, list | tuple):
        return [leaf for item in outputs for leaf in _flat(item)]
    return [outputs]


_PAIRS = {
    "Add": keras.layers.Add,
    "Maximum": keras.layers.Maximum,
    "Minimum": keras.layers.Minimum,
    "Multiply": keras.layers.Multiply,
    "Subtract": keras.layers.Subtract,
}
_UNARY: dict[str, Any] = {
    "HardSigmoid": hard_sigmoid,
    "HardSilu": hard_silu,
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Silu": "swish",
    "Tanh": "tanh",
}


def _operation(
    item: dict[str, Any],
    args: list[Any],
    kwargs: dict[str, Any],
    targets: dict[str, keras.layers.Layer],
) -> Any:
    """Calls the layer that stands for an operation of Keras 3 on tensors."""
    kind, name = item["class_name"], item["name"]
    operands = [*args, *kwargs.values()]
    tensors = [operand for operand in operands if hasattr(operand, "shape")]
    if name not in targets:
        layer = None
        if str(item.get("module", "")).startswith("keras.src.ops"):
            layer = _layer_for(kind, name, operands, tensors)
        if layer is None:
            refuse_layer(
                f"operation {name!r} ({kind})", "tf_keras has no layer for it.", _ADVICE_OPERATION
            )
        targets[name] = layer
    return targets[name](tensors if len(operands) == len(tensors) == 2 else tensors[0])


def _layer_for(
    kind: str, name: str, operands: list[Any], tensors: list[Any]
) -> keras.layers.Layer | None:
    if len(operands) == len(tensors) == 1:
        if kind == "Negative":
            return keras.layers.Rescaling(-1.0, name=name)
        return keras.layers.Activation(_UNARY[kind], name=name) if kind in _UNARY else None
    if len(operands) != 2:
        return None
    if len(tensors) == 2:
        # The merge layers line up unequal ranks from the left, NumPy and Keras 3 from the right.
        same_rank = len(tensors[0].shape) == len(tensors[1].shape)
        return _PAIRS[kind](name=name) if kind in _PAIRS and same_rank else None
    number = next((item for item in operands if isinstance(item, int | float)), None)
    if number is None:
        return None
    first = not isinstance(operands[0], int | float)
    scale_offset = {
        "Add": (1.0, number),
        "Multiply": (number, 0.0),
        "Subtract": (1.0, -number) if first else (-1.0, number),
        "Divide": (1.0 / number, 0.0) if first and number else None,
        "TrueDivide": (1.0 / number, 0.0) if first and number else None,
    }.get(kind)
    if scale_offset is None:
        return None
    return keras.layers.Rescaling(float(scale_offset[0]), float(scale_offset[1]), name=name)
