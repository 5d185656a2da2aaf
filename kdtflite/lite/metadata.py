"""Metadata of a .tflite file: labels, normalization, description, author.

The format is TensorFlow Lite's own (https://ai.google.dev/edge/litert/conversion/tensorflow/metadata):
a second flatbuffer in a buffer named TFLITE_METADATA, and its associated files (labels) as a zip
archive behind the model.
"""

from __future__ import annotations

import functools
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from kdtflite.errors import ModelFileError, to_line
from kdtflite.lite._generated import metadata_schema as schema
from kdtflite.lite.verification import verify_flatbuffer
from kdtflite.text import escape_controls, escape_line

__all__ = ["DETAILS", "ENTRY", "Metadata", "TensorMetadata", "has_metadata", "read_metadata"]

ENTRY = "TFLITE_METADATA"
"""Name of the buffer that holds the metadata."""
DETAILS = "kdtflite.json"
"""The associated file for whatever the standard has no field for."""

# No list of labels is larger; an archive that claims more is damaged.
_MAX_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorMetadata:
    """Metadata of an input or output.

    Attributes:
        name: Its name.
        description: Its description.
        mean: Subtracted from an input before the division by `std`: one value, or one per
            channel. Empty if the file does not say.
        std: The divisor of an input: one value, or one per channel.
        labels: Name of each class of an output; empty if the file does not say.
    """

    name: str = ""
    description: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metadata:
    """Metadata of a model, in TensorFlow Lite's format.

    Attributes:
        name: The model's name.
        description: What it does.
        version: The model's version.
        author: Who made it.
        license: Its license.
        inputs: Metadata of each input, in the file's order.
        outputs: Metadata of each output, in the file's order.
        details: What kdtflite adds: its version, the target, the recipe. Empty in files that
            other programs wrote.
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
        """Labels of the first output that has any."""
        return next((tensor.labels for tensor in self.outputs if tensor.labels), ())

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
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
                lines.append(f"input {escape_line(tensor.name)}: (value - {mean}) / {std}")
        for tensor in self.outputs:
            if tensor.labels:
                labels = _abbreviate(tensor.labels)
                lines.append(
                    f"output {escape_line(tensor.name)}: {len(tensor.labels)} labels, {labels}"
                )
        lines += [f"{k}: {_format(value)}" for k, value in self.details.items() if k != "format"]
        return "\n".join(map(escape_controls, lines))


def read_metadata(content: bytes) -> Metadata | None:
    """Reads the metadata of a .tflite file.

    Args:
        content: The whole file; its model is sound.

    Returns:
        The metadata, or None if the file has none.

    Raises:
        ModelFileError: The metadata is damaged; the model may still be sound.
    """
    try:
        data = _find_entry(content)
        return None if data is None else _parse(data, content)
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
        RuntimeError,  # a password: zipfile has no error class for that
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ModelFileError(
            f"The metadata of the file is damaged and is ignored ({to_line(error)}); the model "
            "itself is not affected."
        ) from error


def has_metadata(content: bytes) -> bool:
    """Returns whether a .tflite file has metadata, sound or not."""
    return next(_find_buffers(content), None) is not None


def _find_buffers(content: bytes) -> Iterator[int]:
    """Yields the index of each buffer that is listed as metadata."""
    model = _open_model(content)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == ENTRY.encode():
            yield entry.Buffer()


def _open_model(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as tflite

    return tflite.Model.GetRootAs(content, 0)


def _find_entry(content: bytes) -> bytes | None:
    number = next(_find_buffers(content), None)
    if number is None:
        return None
    if number >= _open_model(content).BuffersLength():
        raise ValueError("it refers to a buffer that does not exist")
    buffer = _open_model(content).Buffers(number)
    if not buffer.DataLength():
        raise ValueError("its buffer is empty")
    return bytes(buffer.DataAsNumpy())


def _parse(data: bytes, content: bytes) -> Metadata:
    if not schema.ModelMetadata.ModelMetadataBufferHasIdentifier(data, 0):
        raise ValueError(f"expected b'M001' at byte 4, received {data[4:8]!r}")
    verify_flatbuffer(data, schema, "ModelMetadata")
    model = schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(data, 0))
    graph = next(iter(model.subgraphMetadata or []), schema.SubGraphMetadataT())

    @functools.cache  # any number of tensors may name one file
    def read_labels(name: str) -> tuple[str, ...]:
        return tuple(_read_associated(content, name).split("\n"))

    details: Any = {}
    if any(_to_text(file.name) == DETAILS for file in model.associatedFiles or []):
        details = json.loads(_read_associated(content, DETAILS))
        if not isinstance(details, dict):
            raise ValueError(f"{DETAILS} is not a JSON object")
    return Metadata(
        name=_to_text(model.name),
        description=_to_text(model.description),
        version=_to_text(model.version),
        author=_to_text(model.author),
        license=_to_text(model.license),
        inputs=tuple(_parse_tensor(t, read_labels) for t in graph.inputTensorMetadata or []),
        outputs=tuple(_parse_tensor(t, read_labels) for t in graph.outputTensorMetadata or []),
        details=details,
    )


def _parse_tensor(tensor: Any, read_labels: Callable[[str], tuple[str, ...]]) -> TensorMetadata:
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
            labels = read_labels(_to_text(file.name))
    while labels and not labels[-1].strip():  # the line after the last line break
        labels = labels[:-1]
    return TensorMetadata(
        name=_to_text(tensor.name),
        description=_to_text(tensor.description),
        mean=mean,
        std=std,
        labels=tuple(label.rstrip("\r") for label in labels),
    )


def _read_associated(content: bytes, name: str) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.getinfo(name)
        if entry.file_size > _MAX_BYTES:
            raise ValueError(f"{name} claims {entry.file_size:,} bytes")
        # The other methods unpack a whole block before they look at the limit.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is compressed in a way that the format does not allow")
        return archive.read(name).decode()


def _to_text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format(inner)}" for key, inner in value.items())
    return str(value)


def _abbreviate(labels: tuple[str, ...]) -> str:
    shown = labels if len(labels) <= 10 else (*labels[:5], "...", labels[-1])
    return ", ".join(map(escape_line, shown))
