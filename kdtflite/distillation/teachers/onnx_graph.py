"""The last operators of an ONNX file and the files that belong to it, read without `onnx`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from kdtflite.distillation.outputs import Outputs
from kdtflite.distillation.teachers.graph_outputs import trace_outputs
from kdtflite.errors import ModelFileError
from kdtflite.models.trust.sizes import allow_bytes, show_bytes

__all__ = ["check_onnx_sizes", "external_files", "read_onnx", "read_onnx_outputs"]

# The few fields of onnx.proto that are read: (message, field, number, type, repeated).
_FIELDS = (
    ("Entry", "key", 1, "string", False),
    ("Entry", "value", 2, "string", False),
    ("Tensor", "dims", 1, "int64", True),
    ("Tensor", "data_type", 2, "int64", False),
    ("Tensor", "external_data", 13, "Entry", True),
    ("SparseTensor", "values", 1, "Tensor", False),
    ("SparseTensor", "indices", 2, "Tensor", False),
    ("SparseTensor", "dims", 3, "int64", True),
    ("Attribute", "name", 1, "string", False),
    ("Attribute", "i", 3, "int64", False),
    ("Attribute", "t", 5, "Tensor", False),
    ("Attribute", "g", 6, "Graph", False),
    ("Attribute", "tensors", 10, "Tensor", True),
    ("Attribute", "graphs", 11, "Graph", True),
    ("Attribute", "sparse_tensor", 22, "SparseTensor", False),
    ("Attribute", "sparse_tensors", 23, "SparseTensor", True),
    ("Node", "input", 1, "string", True),
    ("Node", "output", 2, "string", True),
    ("Node", "op_type", 4, "string", False),
    ("Node", "attribute", 5, "Attribute", True),
    ("Graph", "node", 1, "Node", True),
    ("Graph", "initializer", 5, "Tensor", True),
    ("Graph", "sparse_initializer", 15, "SparseTensor", True),
    ("Function", "node", 7, "Node", True),
    ("Function", "attribute_proto", 11, "Attribute", True),
    ("Training", "initialization", 1, "Graph", False),
    ("Training", "algorithm", 2, "Graph", False),
    ("Opset", "domain", 1, "string", False),
    ("Opset", "version", 2, "int64", False),
    ("Model", "graph", 7, "Graph", False),
    ("Model", "opset_import", 8, "Opset", True),
    ("Model", "training_info", 20, "Training", True),
    ("Model", "functions", 25, "Function", True),
)
# Bytes of an element by TensorProto.DataType; of the others, which are smaller, one.
_BYTES = {
    **dict.fromkeys((4, 5, 10, 16), 2),
    **dict.fromkeys((1, 6, 12), 4),
    **dict.fromkeys((7, 11, 13, 14), 8),
    15: 16,
}
# These run a file that they name, or Python.
_REACHING_OUT = frozenset({"ATen", "EPContext", "PythonOp", "PythonOpGrad"})
_TRUSTING = ", or pass OnnxTeacher(path, unsafe=True) if you trust it"


def read_onnx(path: Path) -> Any:
    """Returns the parts of an ONNX file that are needed here.

    Raises:
        ModelFileError: It is not an ONNX file.
    """
    from google.protobuf.message import DecodeError

    try:
        model = _make_message_class().FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelFileError(
            f"onnxruntime does not take {path}: it is damaged, or not an ONNX file. "
            "Export the model again."
        ) from error
    if not model.graph.node:
        raise ModelFileError(
            f"onnxruntime does not take {path}: it has no graph. Export the model again."
        )
    return model


def read_onnx_outputs(model: Any, output: str, rank: int) -> Outputs | None:
    """Returns the kind of an output with `rank` axes, or None if the graph does not show it."""
    nodes = {made: node for node in model.graph.node for made in node.output}

    def producer(tensor: str) -> tuple[str, str] | None:
        node = nodes.get(tensor)
        return None if node is None or not node.input else (node.op_type, node.input[0])

    seen, end = trace_outputs(output, producer)
    if seen is None or nodes[end].op_type not in ("Softmax", "LogSoftmax"):
        return seen
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    # Before version 13, softmax by default covered all axes from 1 on.
    axis = next(
        (attribute.i for attribute in nodes[end].attribute if attribute.name == "axis"),
        -1 if max(versions, default=13) >= 13 else 1,
    )
    return seen if axis in (-1, rank - 1) else None


def external_files(model: Any, path: Path, *, unsafe: bool = False) -> list[Path]:
    """Returns the files beside an ONNX file that hold its big weights.

    Args:
        model: What `read_onnx` returned.
        path: The file.
        unsafe: Allow everything.

    Raises:
        ModelFileError: It names a file that is not beside it, or has an operator that runs other
            code.
    """
    names = set()
    for part in _walk(model):
        if getattr(part, "op_type", "") in _REACHING_OUT and not unsafe:
            raise ModelFileError(
                f"{path} uses the operator {part.op_type}, which runs code that the file does not "
                f"hold. Export the model again without it{_TRUSTING}."
            )
        for entry in getattr(part, "external_data", ()):
            if entry.key == "location":
                names.add(entry.value)
    files = [path.parent / name for name in sorted(names)]
    # A cache of downloads links the files of a model to one folder.
    homes = {path.parent.resolve(), path.resolve().parent}
    for name, file in zip(sorted(names), files, strict=True):
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if unsafe:
            continue
        if not inside or not any(file.resolve().is_relative_to(home) for home in homes):
            raise ModelFileError(
                f"{path} takes weights from {name[:200]!r}. Expected files beside it. Copy that "
                f"file beside it and export the model again{_TRUSTING}."
            )
    return files


def check_onnx_sizes(model: Any, path: Path, files: Sequence[Path]) -> None:
    """Raises for an ONNX file whose constants are far larger than what it stores.

    Args:
        model: What `read_onnx` returned.
        path: The file.
        files: All files that hold its weights, itself included.

    Raises:
        ModelFileError: The constants would take more than 64 MiB and twenty times the files.
    """
    stored = sum(file.stat().st_size for file in files if file.is_file())
    declared = sum(
        _BYTES.get(getattr(part, "values", part).data_type, 1) * max(0, prod(part.dims))
        for part in _walk(model)
        if hasattr(part, "dims")
    )
    if declared > allow_bytes(stored):
        raise ModelFileError(
            f"{path} is too large to be read: its constants would take {show_bytes(declared)} of "
            f"memory. Expected at most {show_bytes(allow_bytes(stored))} for the "
            f"{show_bytes(stored)} that are stored. Export the model again{_TRUSTING}."
        )


def _walk(message: Any) -> Iterator[Any]:
    """Yields every node and tensor of an ONNX file, also of its functions and inner graphs."""
    from google.protobuf.message import Message

    waiting = [message]
    while waiting:
        part = waiting.pop()
        yield part
        for field, value in part.ListFields():
            if field.message_type is not None:
                waiting += [value] if isinstance(value, Message) else value


@functools.cache
def _make_message_class() -> Any:
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
        if kind not in ("string", "int64"):
            field.type, field.type_name = kinds.TYPE_MESSAGE, f".kdtflite_onnx.{kind}"
        else:
            field.type = kinds.TYPE_STRING if kind == "string" else kinds.TYPE_INT64
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kdtflite_onnx.Model"))
