"""What stands in a .tflite file, read from its flatbuffer without running anything."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from kdtflite.errors import ModelFileError

__all__ = ["FileTensor", "Operator", "read_graph"]

_IDENTIFIER = b"TFL3"
# Elements of an activation: no machine that runs such files has the memory, and LiteRT would
# clear gigabytes before it notices.
_LARGEST = 2**31
# Kernels that abort the process where an int8 tensor has no scale.
_SCALED = frozenset(
    {"ADD", "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "SOFTMAX"}
)


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file.

    Attributes:
        index: Index in its subgraph.
        subgraph: Index of its subgraph; 0 is the main one.
        name: Name in the file; the converter keeps the path of the Keras layer in it.
        shape: Shape as stored.
        dtype: TensorFlow Lite's type in lower case: "int8", "float32", ...
        scales: Quantization scales: none, one, or one a channel.
        zero_points: As many zero points.
        block_size: Consecutive values of a row that share a scale, which then stands in a tensor
            of its own; 0 where `scales` has them.
        is_constant: Its values are stored in the file.
        bytes: Bytes stored for it.
    """

    index: int
    subgraph: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    block_size: int
    is_constant: bool
    bytes: int


@dataclass(frozen=True)
class Operator:
    """An operator of a file: its kind and the indices of its tensors (-1: left out).

    `activation` is what a FULLY_CONNECTED has fused into it: "NONE", "RELU", ...; "" elsewhere.
    """

    index: int
    subgraph: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom: bool
    activation: str = ""


def read_graph(content: bytes) -> tuple[tuple[FileTensor, ...], tuple[Operator, ...]]:
    """Reads all tensors and operators of a .tflite file.

    Raises:
        ModelFileError: `content` is no .tflite file, or its structure leads outside of it.
    """
    if not content:
        raise ModelFileError("The file is empty. Expected a .tflite file.")
    if len(content) < 8 or content[4:8] != _IDENTIFIER:
        raise ModelFileError(
            "This is no .tflite file. Expected the identifier TFL3 at byte 4. "
            f"Received: {content[4:8]!r}."
        )
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.Model.GetRootAs(content, 0)
        tensors = tuple(_tensors(schema, model, len(content)))
        operators = tuple(_operators(schema, model))
        by_subgraph = [model.Subgraphs(s).TensorsLength() for s in range(model.SubgraphsLength())]
        used = [(o.subgraph, i) for o in operators for i in (*o.inputs, *o.outputs)]
        if not by_subgraph or any(not -1 <= i < by_subgraph[s] for s, i in used):
            raise ValueError("an operator names a tensor that is not there")
        _check_scales(tensors, operators)
        if any(not tensor.is_constant and prod(tensor.shape) > _LARGEST for tensor in tensors):
            raise ValueError("a tensor is larger than any that is run")
    except (
        struct.error,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise ModelFileError(
            f"The .tflite file of {len(content):,} bytes is damaged or cut off: its structure does "
            "not hold together. Copy it again or convert the model again."
        ) from error
    return tensors, operators


def _check_scales(tensors: tuple[FileTensor, ...], operators: tuple[Operator, ...]) -> None:
    """Raises for an operator without the scales that its kernel demands by aborting the process."""
    bare = {
        (tensor.subgraph, tensor.index)
        for tensor in tensors
        if tensor.dtype in ("int8", "uint8")
        and not (tensor.scales and all(0 < scale < np.inf for scale in tensor.scales))
    }
    for operator in operators:
        if operator.name in _SCALED and any(
            (operator.subgraph, index) in bare for index in (*operator.inputs, *operator.outputs)
        ):
            raise ValueError(f"operator {operator.index} {operator.name} has no scale")


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def _tensors(schema: Any, model: Any, size: int) -> Any:
    types = _names(schema.TensorType)
    for s in range(model.SubgraphsLength()):
        graph = model.Subgraphs(s)
        for t in range(graph.TensorsLength()):
            tensor = graph.Tensors(t)
            buffer = model.Buffers(tensor.Buffer())
            # Buffers of files over 2 GB stand behind the flatbuffer, by offset and size.
            stored = buffer.DataLength() or buffer.Size()
            if stored > size or buffer.Offset() > size:
                raise ValueError("a buffer leads outside the file")
            quantization = tensor.Quantization()
            scales: tuple[float, ...] = ()
            zero_points: tuple[int, ...] = ()
            if quantization is not None and quantization.ScaleLength():
                scales = tuple(float(v) for v in quantization.ScaleAsNumpy())
                zero_points = tuple(int(v) for v in quantization.ZeroPointAsNumpy())
            yield FileTensor(
                index=t,
                subgraph=s,
                name=(tensor.Name() or b"").decode(errors="replace"),
                shape=tuple(int(v) for v in np.atleast_1d(tensor.ShapeAsNumpy()))
                if tensor.ShapeLength()
                else (),
                dtype=types[tensor.Type()].lower(),
                scales=scales,
                zero_points=zero_points,
                block_size=_block_size(schema, quantization),
                is_constant=stored > 0,
                bytes=stored,
            )


def _block_size(schema: Any, quantization: Any) -> int:
    if (
        quantization is None
        or quantization.DetailsType() != schema.QuantizationDetails.BlockwiseQuantization
    ):
        return 0
    blocks = schema.BlockwiseQuantization()
    details = quantization.Details()
    blocks.Init(details.Bytes, details.Pos)
    return int(blocks.BlockSize())


def _operators(schema: Any, model: Any) -> Any:
    builtins = _names(schema.BuiltinOperator)
    for s in range(model.SubgraphsLength()):
        graph = model.Subgraphs(s)
        for o in range(graph.OperatorsLength()):
            operator = graph.Operators(o)
            code = model.OperatorCodes(operator.OpcodeIndex())
            # Old files keep the code in a byte of its own; both are filled for codes below 127.
            kind = builtins[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            custom = kind == "CUSTOM"
            yield Operator(
                index=o,
                subgraph=s,
                name=(code.CustomCode() or b"CUSTOM").decode(errors="replace") if custom else kind,
                inputs=tuple(int(operator.Inputs(i)) for i in range(operator.InputsLength())),
                outputs=tuple(int(operator.Outputs(i)) for i in range(operator.OutputsLength())),
                custom=custom,
                activation=_activation(schema, operator) if kind == "FULLY_CONNECTED" else "",
            )


def _activation(schema: Any, operator: Any) -> str:
    table = operator.BuiltinOptions()
    if table is None:
        return "NONE"
    options = schema.FullyConnectedOptions()
    options.Init(table.Bytes, table.Pos)
    return _names(schema.ActivationFunctionType)[options.FusedActivationFunction()]
