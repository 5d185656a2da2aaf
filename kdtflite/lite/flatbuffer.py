"""The tensors and operators of a .tflite file, read from its flatbuffer without running it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdtflite.errors import ModelFileError
from kdtflite.lite.graph_checks import check_calls, check_operator, check_order, check_scales
from kdtflite.lite.operand_checks import Operands, check_operands
from kdtflite.lite.tensor_checks import check_tensor
from kdtflite.lite.verification import verify_flatbuffer

__all__ = ["FileContents", "FileTensor", "Operator", "Port", "read_file", "read_graph"]

_IDENTIFIER = b"TFL3"
_VERSION = 3


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a .tflite file.

    Attributes:
        index: Index in its subgraph.
        subgraph: Index of its subgraph; 0 is the main one.
        name: Name in the file; the converter puts the path of the Keras layer into it.
        shape: Shape as stored.
        dtype: TensorFlow Lite's type in lower case: "int8", "float32", ...
        scales: Quantization scales: none, one, or one per channel.
        zero_points: One zero point per scale.
        block_size: How many consecutive values of a row share a scale. The scales then stand in a
            tensor of their own; 0 if they are in `scales`.
        is_constant: Whether its values are stored in the file.
        bytes: Number of bytes stored for it.
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
    """An operator of a .tflite file.

    Attributes:
        index: Index in its subgraph, in execution order.
        subgraph: Index of its subgraph; 0 is the main one.
        name: Its kind: "CONV_2D", ..., or the name of a custom operator.
        inputs: Indices of the tensors it reads; -1 for an optional one that is left out.
        outputs: Indices of the tensors it writes.
        custom: Whether it is a custom operator (or a Flex one, which is custom too).
        activation: The activation fused into a FULLY_CONNECTED: "NONE", "RELU", ...; "" for
            other operators.
    """

    index: int
    subgraph: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom: bool
    activation: str = ""


@dataclass(frozen=True)
class Port:
    """An input or output of a .tflite file.

    Attributes:
        index: Index of its tensor in the main subgraph.
        name: Name in the file's first signature, or the tensor's; each port has its own.
        shape_signature: The shape with -1 for sizes that may be changed.
    """

    index: int
    name: str
    shape_signature: tuple[int, ...]


@dataclass(frozen=True)
class FileContents:
    """Everything that a .tflite file says about itself.

    Attributes:
        tensors: Every tensor of every subgraph, constants included.
        operators: Every operator of every subgraph, in execution order.
        inputs: Inputs of the main subgraph.
        outputs: Outputs of the main subgraph.
    """

    tensors: tuple[FileTensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def read_graph(content: bytes) -> tuple[tuple[FileTensor, ...], tuple[Operator, ...]]:
    """Reads all tensors and operators of a .tflite file.

    Raises:
        ModelFileError: As for `read_file`.
    """
    graph = read_file(content)
    return graph.tensors, graph.operators


def read_file(content: bytes) -> FileContents:
    """Reads and checks a .tflite file whole, before native code sees it.

    Checked are every offset, vector and text; that indices of buffers, tensors, operators and
    subgraphs exist; that constants have the bytes which their shape and dtype need; the numbers of
    scales and zero points; that nothing is read before it is computed; and the options that a
    kernel divides by.

    Raises:
        ModelFileError: `content` is not a .tflite file, or something in it does not hold together;
            the sentence says what.
    """
    if not content:
        raise ModelFileError("The file is empty. Expected a .tflite file.")
    if len(content) < 8 or content[4:8] != _IDENTIFIER:
        raise ModelFileError(
            "This is not a .tflite file. Expected the identifier TFL3 at byte 4. "
            f"Received: {content[4:8]!r}."
        )
    from ai_edge_litert import schema_py_generated as schema

    try:
        verify_flatbuffer(content, schema, "Model")
        return _read_model(schema, schema.Model.GetRootAs(content, 0), content)
    except (struct.error, IndexError, OverflowError) as error:
        raise _refuse(content, "an offset points outside of it") from error
    except (ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise _refuse(content, str(error) or "its parts do not fit together") from error


def _refuse(content: bytes, problem: str) -> ModelFileError:
    return ModelFileError(
        f"The .tflite file of {len(content):,} bytes is damaged or cut off: {problem}. Copy it "
        "again or convert the model again."
    )


def _read_model(schema: Any, model: Any, content: bytes) -> FileContents:
    if model.Version() != _VERSION:
        raise ValueError(f"its schema has version {model.Version()}, not {_VERSION}")
    if model.ExternalBuffersLength() or model.ExternalBufferGroupsLength():
        raise ValueError("it keeps its weights in other files, which are never read")
    if not model.SubgraphsLength():
        raise ValueError("it has no subgraph")
    for i in range(model.MetadataLength()):
        if model.Metadata(i).Buffer() >= model.BuffersLength():
            raise ValueError(f"metadata entry {i} refers to a buffer that does not exist")
    kinds = tuple(_read_kinds(schema, model))
    tensors: list[FileTensor] = []
    operators: list[Operator] = []
    calls: list[tuple[int, int]] = []
    for s in range(model.SubgraphsLength()):
        graph = model.Subgraphs(s)
        inside = tuple(_read_tensors(schema, model, s, content))
        inputs, outputs = _read_indices(graph, "Inputs"), _read_indices(graph, "Outputs")
        for index in (*inputs, *outputs):
            if not 0 <= index < len(inside):
                raise ValueError(f"subgraph {s} has an input or output {index} that does not exist")
        used = tuple(_read_operators(schema, graph, s, kinds, inside, calls, len(content)))
        for operator in used:
            _check_operands(model, graph, operator, inside)
        variables = {t for t in range(len(inside)) if graph.Tensors(t).IsVariable()}
        check_order(inside, used, inputs, outputs, variables)
        check_scales(inside, used)
        tensors += inside
        operators += used
    check_calls(calls, model.SubgraphsLength())
    return FileContents(
        tuple(tensors),
        tuple(operators),
        *(_read_ports(model, tensors, role) for role in ("Inputs", "Outputs")),
    )


def _map_names(enumeration: Any) -> dict[int, str]:
    """Returns the name of each value of an enumeration."""
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def _read_kinds(schema: Any, model: Any) -> Iterator[tuple[str, bool]]:
    """Yields the name of each operator code, and whether it is custom."""
    builtins = _map_names(schema.BuiltinOperator)
    for i in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(i)
        # Old files keep the code in one byte; codes below 127 are written in both places.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if number not in builtins:
            raise ValueError(f"operator code {number} is unknown")
        custom = builtins[number] == "CUSTOM"
        yield (_to_text(code.CustomCode()) or "CUSTOM") if custom else builtins[number], custom


def _read_indices(table: Any, name: str) -> tuple[int, ...]:
    """Returns a vector of 32-bit integers."""
    values = getattr(table, f"{name}AsNumpy")() if getattr(table, f"{name}Length")() else ()
    return tuple(int(value) for value in np.atleast_1d(values))


def _to_text(value: bytes | None) -> str:
    return (value or b"").decode()  # a UnicodeDecodeError is a ValueError


def _read_tensors(schema: Any, model: Any, subgraph: int, content: bytes) -> Iterator[FileTensor]:
    types = _map_names(schema.TensorType)
    graph = model.Subgraphs(subgraph)
    for t in range(graph.TensorsLength()):
        tensor = graph.Tensors(t)
        if tensor.Type() not in types:
            raise ValueError(f"tensor {t} of subgraph {subgraph} has an unknown dtype")
        if tensor.Buffer() >= model.BuffersLength():
            raise ValueError(f"tensor {t} of subgraph {subgraph} has a buffer that does not exist")
        buffer = model.Buffers(tensor.Buffer())
        # Files over 2 GB keep their buffers behind the flatbuffer, by offset and size.
        stored = buffer.DataLength() or buffer.Size()
        if not buffer.DataLength() and buffer.Offset() + buffer.Size() > len(content):
            raise ValueError("a buffer points outside of it")
        quantization = tensor.Quantization()
        scales: tuple[float, ...] = ()
        zero_points: tuple[int, ...] = ()
        if quantization is not None and quantization.ScaleLength():
            scales = tuple(quantization.ScaleAsNumpy().tolist())
            zero_points = _read_indices(quantization, "ZeroPoint")
        read = FileTensor(
            index=t,
            subgraph=subgraph,
            name=_to_text(tensor.Name()),
            shape=_read_indices(tensor, "Shape"),
            dtype=types[tensor.Type()].lower(),
            scales=scales,
            zero_points=zero_points,
            block_size=_read_block_size(schema, quantization),
            is_constant=stored > 0,
            bytes=stored,
        )
        check_tensor(schema, tensor, read, buffer if buffer.DataLength() else None)
        yield read


def _read_block_size(schema: Any, quantization: Any) -> int:
    if (
        quantization is None
        or quantization.DetailsType() != schema.QuantizationDetails.BlockwiseQuantization
        or quantization.Details() is None
    ):
        return 0
    blocks = schema.BlockwiseQuantization()
    details = quantization.Details()
    blocks.Init(details.Bytes, details.Pos)
    return int(blocks.BlockSize())


def _read_operators(
    schema: Any,
    graph: Any,
    subgraph: int,
    kinds: tuple[tuple[str, bool], ...],
    tensors: tuple[FileTensor, ...],
    calls: list[tuple[int, int]],
    size: int,
) -> Iterator[Operator]:
    for o in range(graph.OperatorsLength()):
        operator = graph.Operators(o)
        if operator.OpcodeIndex() >= len(kinds):
            raise ValueError(f"operator {o} of subgraph {subgraph} has no kind")
        if operator.LargeCustomOptionsOffset() + operator.LargeCustomOptionsSize() > size:
            raise ValueError(f"the options of operator {o} lie outside of it")
        name, custom = kinds[operator.OpcodeIndex()]
        inputs, outputs = _read_indices(operator, "Inputs"), _read_indices(operator, "Outputs")
        inner = _read_indices(operator, "Intermediates")
        if not all(-1 <= i < len(tensors) for i in (*inputs, *inner)) or not all(
            0 <= i < len(tensors) for i in outputs
        ):
            raise ValueError(f"operator {o} {name} names a tensor that does not exist")
        activation, called = check_operator(schema, operator, o, name, inputs, outputs, tensors)
        calls += [(subgraph, target) for target in called]
        yield Operator(
            index=o,
            subgraph=subgraph,
            name=name,
            inputs=inputs,
            outputs=outputs,
            custom=custom,
            activation=(activation or "NONE") if name == "FULLY_CONNECTED" else "",
        )


def _check_operands(
    model: Any, graph: Any, operator: Operator, tensors: tuple[FileTensor, ...]
) -> None:
    def is_static(tensor: FileTensor) -> bool:
        return -1 not in _read_indices(graph.Tensors(tensor.index), "ShapeSignature")

    def read_integers(tensor: FileTensor) -> tuple[int, ...] | None:
        buffer = model.Buffers(graph.Tensors(tensor.index).Buffer())
        if tensor.dtype not in ("int32", "int64") or not buffer.DataLength():
            return None
        values = np.frombuffer(buffer.DataAsNumpy().tobytes(), tensor.dtype)
        return tuple(int(value) for value in values)

    given = [None if i < 0 else tensors[i] for i in operator.inputs]
    taken = [tensors[i] for i in operator.outputs]
    try:
        check_operands(Operands(operator.name, given, taken, is_static, read_integers))
    except ValueError as error:
        raise ValueError(f"operator {operator.index} {operator.name} {error}") from None


def _read_ports(model: Any, tensors: list[FileTensor], role: str) -> tuple[Port, ...]:
    """Returns the inputs or outputs of the main subgraph, named as in the first signature."""
    main = model.Subgraphs(0)
    indices = _read_indices(main, role)
    if not indices:
        raise ValueError(f"its main subgraph has no {role.lower()}")
    names: dict[int, list[str]] = {}
    for i in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(i)
        _to_text(signature.SignatureKey())
        if signature.SubgraphIndex() >= model.SubgraphsLength():
            raise ValueError(f"signature {i} refers to a subgraph that does not exist")
        graph = model.Subgraphs(signature.SubgraphIndex())
        there = _read_indices(graph, role)
        for j in range(getattr(signature, f"{role}Length")()):
            entry = getattr(signature, role)(j)
            name = _to_text(entry.Name())
            if entry.TensorIndex() not in there:
                raise ValueError(f"signature {i} names a tensor {name!r} not in its graph")
            if i == 0 and signature.SubgraphIndex() == 0:
                names.setdefault(entry.TensorIndex(), []).append(name)
    ports: list[Port] = []
    for index in indices:
        left = names.get(index)  # a tensor that is two outputs has two names
        name = left.pop(0) if left else tensors[index].name
        # Values are taken and returned by name.
        while any(port.name == name for port in ports):
            name = f"{name}:{index}"
        tensor = main.Tensors(index)
        signature_shape = _read_indices(tensor, "ShapeSignature") or tensors[index].shape
        ports.append(Port(index, name, signature_shape))
    return tuple(ports)
