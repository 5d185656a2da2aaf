"""The end of an ONNX file's graph, and the files that belong to it, read without `onnx`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from kdtflite.distillation.outputs import Outputs
from kdtflite.distillation.teachers.ending import ending
from kdtflite.errors import ModelFileError

__all__ = ["external_files", "onnx_ending", "read_onnx"]

# The few fields of onnx.proto that are read: (message, field, number, type, repeated).
_FIELDS = (
    ("Entry", "key", 1, "string", False),
    ("Entry", "value", 2, "string", False),
    ("Tensor", "external_data", 13, "Entry", True),
    ("Attribute", "name", 1, "string", False),
    ("Attribute", "i", 3, "int64", False),
    ("Node", "input", 1, "string", True),
    ("Node", "output", 2, "string", True),
    ("Node", "op_type", 4, "string", False),
    ("Node", "attribute", 5, "Attribute", True),
    ("Graph", "node", 1, "Node", True),
    ("Graph", "initializer", 5, "Tensor", True),
    ("Opset", "domain", 1, "string", False),
    ("Opset", "version", 2, "int64", False),
    ("Model", "graph", 7, "Graph", False),
    ("Model", "opset_import", 8, "Opset", True),
)


def read_onnx(path: Path) -> Any:
    """Returns the parts of an ONNX file that are looked at.

    Raises:
        ModelFileError: It is no ONNX file.
    """
    from google.protobuf.message import DecodeError

    try:
        model = _message_class().FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelFileError(
            f"{path} is no ONNX file, or a damaged one. Export it again."
        ) from error
    if not model.graph.node:
        raise ModelFileError(f"{path} is no ONNX file: there is no graph in it. Export it again.")
    return model


def onnx_ending(model: Any, output: str, rank: int) -> Outputs | None:
    """Returns what an ONNX graph gives in `output`, of `rank` axes; None where it does not show."""
    nodes = {made: node for node in model.graph.node for made in node.output}

    def producer(tensor: str) -> tuple[str, str] | None:
        node = nodes.get(tensor)
        return None if node is None or not node.input else (node.op_type, node.input[0])

    seen, end = ending(output, producer)
    if seen is None or nodes[end].op_type not in ("Softmax", "LogSoftmax"):
        return seen
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    # Until version 13 softmax went over all axes from 1 on by default.
    axis = next(
        (attribute.i for attribute in nodes[end].attribute if attribute.name == "axis"),
        -1 if max(versions, default=13) >= 13 else 1,
    )
    return seen if axis in (-1, rank - 1) else None


def external_files(model: Any, path: Path) -> list[Path]:
    """Returns the files beside an ONNX file that hold its big weights."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / name for name in sorted(names)]


@functools.cache
def _message_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="onnx_parts.proto", package="kdtflite_onnx")
    messages: dict[str, Any] = {}
    for message, name, number, kind, repeated in _FIELDS:
        if message not in messages:
            messages[message] = file.message_type.add(name=message)
        field = messages[message].field.add(
            name=name,
            number=number,
            label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
        )
        if kind in messages:
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".kdtflite_onnx.{kind}"
        else:
            field.type = kinds.TYPE_STRING if kind == "string" else kinds.TYPE_INT64
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kdtflite_onnx.Model"))
