"""Multiply-accumulates from the operators of a `.tflite`."""

from __future__ import annotations

from math import prod

from kdtflite.errors import UnsupportedModelError
from kdtflite.evaluation.loops import refuse_loop
from kdtflite.evaluation.models import invoked_on_zeros
from kdtflite.flatbuffer import Operator
from kdtflite.litemodel import LiteModel

__all__ = ["file_macs"]

Shape = tuple[int, ...]

_LOOPS = ("WHILE", "IF", "CALL_ONCE")
_RECURRENT = ("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "RNN", "SVDF")


def file_macs(model: LiteModel) -> int:
    """Returns the multiply-accumulates of one sample; see `kdtflite.evaluation.macs`."""
    details = invoked_on_zeros(model).get_tensor_details()
    shapes = {int(d["index"]): tuple(int(size) for size in d["shape"]) for d in details}
    total = 0
    for operator in model.operators:
        if operator.subgraph == 0:
            total += _of_operator(operator, shapes)
    batch = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    return total // max(1, batch)


def _of_operator(operator: Operator, shapes: dict[int, Shape]) -> int:
    if operator.name in _LOOPS:
        raise refuse_loop(f"the operator {operator.name} (number {operator.index})")
    if operator.name in _RECURRENT:
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
