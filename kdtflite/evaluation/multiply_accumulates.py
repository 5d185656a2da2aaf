"""Multiply-accumulates of a `.tflite`, from its operators, and of a Keras model, from its graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

from kdtflite.errors import UnsupportedModelError
from kdtflite.lite.flatbuffer import Operator
from kdtflite.lite.model import LiteModel
from kdtflite.lite.operators import CONTROL_FLOW, FUSED_RECURRENT

__all__ = ["count_einsum_macs", "count_file_macs", "count_graph_macs"]

Shape = tuple[int, ...]

_LOOP_OPERATIONS = frozenset({"While", "StatelessWhile", "If", "StatelessIf", "Case"})
_CALL_OPERATIONS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def count_file_macs(model: LiteModel) -> int:
    """Returns the multiply-accumulates of one sample; see `kdtflite.evaluation.macs`."""
    details = model.run_on_zeros(xnnpack=False).get_tensor_details()
    shapes = {int(d["index"]): tuple(int(size) for size in d["shape"]) for d in details}
    total = 0
    for operator in model.operators:
        if operator.subgraph == 0:
            total += _count_operator(operator, shapes)
    batch = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    return total // max(1, batch)


def _count_operator(operator: Operator, shapes: dict[int, Shape]) -> int:
    if operator.name in CONTROL_FLOW:
        raise _refuse_loop(f"the operator {operator.name} (number {operator.index})")
    if operator.name in FUSED_RECURRENT:
        raise UnsupportedModelError(
            f"Expected operators whose multiply-accumulates can be counted. Received: the fused "
            f"recurrent operator {operator.name} (number {operator.index})."
        )
    output = prod(shapes[operator.outputs[0]]) if operator.outputs else 0
    if operator.name in ("CONV_2D", "CONV_3D"):
        weights = shapes[operator.inputs[1]]
        # CONV_2D keeps the output channels first, CONV_3D last; each output is a dot product
        # over the rest, which for groups holds a group's channels only.
        channels = weights[0] if operator.name == "CONV_2D" else weights[-1]
        return output * prod(weights) // channels
    if operator.name == "DEPTHWISE_CONV_2D":
        return output * prod(shapes[operator.inputs[1]][1:3])
    if operator.name == "FULLY_CONNECTED":
        return output * shapes[operator.inputs[1]][-1]
    if operator.name == "TRANSPOSE_CONV":
        # Inputs: output shape, weights (out, height, width, in), data. Every input value meets
        # every weight of its channel once.
        out_channels, height, width, _ = shapes[operator.inputs[1]]
        return prod(shapes[operator.inputs[2]]) * out_channels * height * width
    if operator.name == "BATCH_MATMUL":
        rows = shapes[operator.outputs[0]][-2]
        left = shapes[operator.inputs[0]]
        # Whichever way the left matrix lies, its area over the output's rows is the inner size.
        return output * (left[-1] * left[-2] // rows)
    return 0


def count_graph_macs(model: Any) -> int:
    """Returns the multiply-accumulates of one sample; see `kdtflite.evaluation.macs`.

    Why the graph and not the layers: it holds every call of a shared layer, the insides of
    nested, wrapped and custom layers, and the matrix products of attention, each with its shape.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    if not model.built or not model.inputs:
        raise UnsupportedModelError(
            f"Expected a built model with known inputs. Received: {model.name}. "
            "Make it a functional model: x = keras.Input(shape); keras.Model(x, model(x))."
        )
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise UnsupportedModelError(
                "Expected fixed input sizes to count multiply-accumulates. Received: input "
                f"{tensor.name} of shape {tuple(tensor.shape)}. Rebuild the model with them."
            )
    # One sample, whatever batch size the model was built with.
    signature = [tf.TensorSpec([1, *t.shape[1:]], t.dtype) for t in model.inputs]

    @tf.function(autograph=False)
    def forward(*inputs: Any) -> Any:
        structure = dict(zip(model.input_names, inputs, strict=True))
        return model(structure if len(inputs) > 1 else inputs[0], training=False)

    # Frozen: inside a called function a variable is a handle, and its shape is unknown.
    function = forward.get_concrete_function(*signature)
    graph = convert_variables_to_constants_v2(function, lower_control_flow=False).graph
    functions = {f.signature.name: f for f in graph.as_graph_def().library.function}
    return sum(_count_operation(operation) for operation in _walk_operations(graph, functions))


def _walk_operations(graph: Any, functions: dict[str, Any]) -> Iterator[Any]:
    for operation in graph.get_operations():
        if operation.type in _LOOP_OPERATIONS:
            raise _refuse_loop(f"the operation {operation.name} ({operation.type})")
        if operation.type in _CALL_OPERATIONS:
            function = functions[operation.get_attr("f").name]
            inner = _build_with_shapes(graph, function, operation)
            yield from _walk_operations(inner, functions)
        else:
            yield operation


def _build_with_shapes(graph: Any, function: Any, call: Any) -> Any:
    """Returns a called function's graph with the shapes of this call.

    It was traced for any batch size (grouped convolutions are), and its own graph says None.
    """
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

    unshaped = type(function)()
    unshaped.CopyFrom(function)
    # The shapes it was traced with stand here too, and would win.
    unshaped.arg_attr.clear()
    shapes = [tensor.shape for tensor in call.inputs]
    with graph.as_default():
        return function_def_to_graph(unshaped, input_shapes=shapes)


def _count_operation(operation: Any) -> int:
    kind = operation.type
    if kind in ("Conv2D", "Conv3D"):
        kernel = _read_shape(operation, operation.inputs[1])
        # (height, width, in, out): each output value is a dot product over all but the last.
        return prod(_read_shape(operation, operation.outputs[0])) * prod(kernel[:-1])
    if kind == "DepthwiseConv2dNative":
        kernel = _read_shape(operation, operation.inputs[1])
        return prod(_read_shape(operation, operation.outputs[0])) * prod(kernel[:2])
    if kind in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):
        # A transposed convolution: (height, width, out, in), every input value meets every
        # weight of its channel once.
        kernel = _read_shape(operation, operation.inputs[1])
        return prod(_read_shape(operation, operation.inputs[2])) * prod(kernel[:-1])
    if kind == "MatMul":
        left = _read_shape(operation, operation.inputs[0])
        inner = left[0] if operation.get_attr("transpose_a") else left[1]
        return prod(_read_shape(operation, operation.outputs[0])) * inner
    if kind in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        left = _read_shape(operation, operation.inputs[0])
        inner = left[-2] if operation.get_attr("adj_x") else left[-1]
        return prod(_read_shape(operation, operation.outputs[0])) * inner
    if kind == "Einsum":
        equation = operation.get_attr("equation").decode()
        return count_einsum_macs(equation, [_read_shape(operation, t) for t in operation.inputs])
    return 0


def count_einsum_macs(equation: str, shapes: Iterable[tuple[int, ...]]) -> int:
    """Returns the multiply-accumulates of a two-operand einsum: the product of all its sizes.

    Args:
        equation: For example "abc,cd->abd"; "..." stands for shared leading axes.
        shapes: Shape of each operand.
    """
    operands = equation.replace(" ", "").split("->")[0].split(",")
    if len(operands) < 2:
        return 0
    sizes: dict[str, int] = {}
    for operand, shape in zip(operands, shapes, strict=True):
        head, dots, tail = operand.partition("...")
        hidden = len(shape) - len(head) - len(tail)
        axes = [*head, *(f"...{hidden - n}" for n in range(hidden if dots else 0)), *tail]
        for axis, size in zip(axes, shape, strict=True):
            # Broadcasting: an axis of size 1 stretches to the other operand's.
            sizes[axis] = max(size, sizes.get(axis, 1))
    return prod(sizes.values())


def _read_shape(operation: Any, tensor: Any) -> tuple[int, ...]:
    if tensor.shape.rank is None or None in tensor.shape:
        raise UnsupportedModelError(
            "Expected sizes that are known before the model runs. Received: shape "
            f"{tensor.shape} at the operation {operation.name}. Rebuild the model with fixed sizes."
        )
    return tuple(tensor.shape)


def _refuse_loop(what: str) -> UnsupportedModelError:
    """Returns the error for a model with a loop, as only the data decide how often it runs."""
    return UnsupportedModelError(
        f"Expected a model without loops to count multiply-accumulates. Received: {what}. "
        "Build recurrent layers with unroll=True."
    )
