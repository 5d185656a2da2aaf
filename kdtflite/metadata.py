"""What stands in a .tflite file beside the model: labels, normalisation, description, author.

The format is TensorFlow Lite's own (https://ai.google.dev/edge/litert/conversion/tensorflow/metadata):
a flatbuffer of its own in a buffer named TFLITE_METADATA, and the files that belong to it (labels)
as a zip archive behind the model.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from kdtflite import metadata_schema_py_generated as schema
from kdtflite.errors import ModelFileError, one_line

__all__ = ["DETAILS", "ENTRY", "Metadata", "TensorMetadata", "has_metadata", "read_metadata"]

ENTRY = "TFLITE_METADATA"
"""Name of the buffer that holds the metadata."""
DETAILS = "kdtflite.json"
"""The associated file with what the standard has no field for."""

# No list of labels is larger; an archive that claims more is damaged.
_LARGEST = 1 << 24


@dataclass(frozen=True)
class TensorMetadata:
    """What is said of an input or output.

    Attributes:
        name: Its name.
        description: What it is.
        mean: Subtracted from an input before it is divided by `std`: one value, or one a
            channel. Empty where nothing is said.
        std: What an input is divided by.
        labels: Name of each class of an output; empty where nothing is said.
    """

    name: str = ""
    description: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metadata:
    """What is said of a model, in TensorFlow Lite's metadata format.

    Attributes:
        name: The model's name.
        description: What it does.
        version: The model's version.
        author: Who made it.
        license: Its licence.
        inputs: What is said of each input, in the file's order.
        outputs: What is said of each output, in the file's order.
        details: What kdtflite adds: its version, the target, the recipe. Empty in files of
            other programs.
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    inputs: tuple[TensorMetadata, ...] = ()
    outputs: tuple[TensorMetadata, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the first output that has some."""
        return next((tensor.labels for tensor in self.outputs if tensor.labels), ())

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std of the first input that has them: real value = (pixel - mean) / std."""
        return next(((tensor.mean, tensor.std) for tensor in self.inputs if tensor.std), None)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{key}: {value}"
            for key in ("name", "description", "version", "author", "license")
            if (value := getattr(self, key))
        ]
        for tensor in self.inputs:
            if tensor.std:
                mean, std = (
                    ", ".join(f"{value:.9g}" for value in values)
                    for values in (tensor.mean, tensor.std)
                )
                lines.append(f"input {tensor.name}: (value - {mean}) / {std}")
        for tensor in self.outputs:
            if tensor.labels:
                labels = _shortened(tensor.labels)
                lines.append(f"output {tensor.name}: {len(tensor.labels)} labels, {labels}")
        lines += [f"{k}: {_plain(value)}" for k, value in self.details.items() if k != "format"]
        return "\n".join(lines)


def read_metadata(content: bytes) -> Metadata | None:
    """Reads the metadata of a .tflite file.

    Args:
        content: The file, whole; its model is sound.

    Returns:
        What they say, or None for a file without.

    Raises:
        ModelFileError: The metadata are damaged; the model may be sound all the same.
    """
    try:
        data = _entry(content)
        return None if data is None else _read(data, content)
    except (
        struct.error,
        ValueError,  # and UnicodeDecodeError, JSONDecodeError
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        EOFError,
        NotImplementedError,
        RuntimeError,  # a password, which zipfile has no kind of error for
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ModelFileError(
            f"The metadata of the file are damaged and are left out ({one_line(error)}); the model "
            "itself is not touched by that."
        ) from error


def has_metadata(content: bytes) -> bool:
    """Says whether a .tflite file has metadata, sound or not."""
    return any(True for _ in _buffers(content))


def _buffers(content: bytes) -> Iterator[int]:
    """Yields the numbers of the buffers that are named as metadata."""
    model = _model(content)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == ENTRY.encode():
            yield entry.Buffer()


def _model(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as tflite

    return tflite.Model.GetRootAs(content, 0)


def _entry(content: bytes) -> bytes | None:
    number = next(_buffers(content), None)
    if number is None:
        return None
    if number >= _model(content).BuffersLength():
        raise ValueError("they stand in a buffer that is not there")
    buffer = _model(content).Buffers(number)
    if not buffer.DataLength():
        raise ValueError("their buffer is empty")
    return bytes(buffer.DataAsNumpy())


def _read(data: bytes, content: bytes) -> Metadata:
    if not schema.ModelMetadata.ModelMetadataBufferHasIdentifier(data, 0):
        raise ValueError(f"expected b'M001' at byte 4, received {data[4:8]!r}")
    model = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(data, 0))
    graph = next(iter(model.subgraphMetadata or []), schema.SubGraphMetadataT())
    details: Any = {}
    if any(_text(file.name) == DETAILS for file in model.associatedFiles or []):
        details = json.loads(_associated(content, DETAILS))
        if not isinstance(details, dict):
            raise ValueError(f"{DETAILS} holds no names and values")
    return Metadata(
        name=_text(model.name),
        description=_text(model.description),
        version=_text(model.version),
        author=_text(model.author),
        license=_text(model.license),
        inputs=tuple(_tensor(t, content) for t in graph.inputTensorMetadata or []),
        outputs=tuple(_tensor(t, content) for t in graph.outputTensorMetadata or []),
        details=details,
    )


def _tensor(tensor: Any, content: bytes) -> TensorMetadata:
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in tensor.processUnits or []:
        if unit.optionsType == schema.ProcessUnitOptions.NormalizationOptions:
            mean, std = (
                tuple(float(value) for value in (() if values is None else values))
                for values in (unit.options.mean, unit.options.std)
            )
    labels: tuple[str, ...] = ()
    for file in tensor.associatedFiles or []:
        if file.type == schema.AssociatedFileType.TENSOR_AXIS_LABELS and not labels:
            labels = tuple(_associated(content, _text(file.name)).split("\n"))
    while labels and not labels[-1].strip():  # the line after the last line feed
        labels = labels[:-1]
    return TensorMetadata(
        name=_text(tensor.name),
        description=_text(tensor.description),
        mean=mean,
        std=std,
        labels=tuple(label.rstrip("\r") for label in labels),
    )


def _associated(content: bytes, name: str) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if archive.getinfo(name).file_size > _LARGEST:
            raise ValueError(f"{name} claims {archive.getinfo(name).file_size:,} bytes")
        return archive.read(name).decode()


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return str(value)


def _shortened(labels: tuple[str, ...]) -> str:
    if len(labels) <= 10:
        return ", ".join(labels)
    return ", ".join((*labels[:5], "...", labels[-1]))
