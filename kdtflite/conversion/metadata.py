"""Labels, normalisation and description written into a .tflite file, in the standard format."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from kdtflite import metadata_schema_py_generated as schema
from kdtflite.conversion.metadata_entry import with_metadata
from kdtflite.errors import ConfigurationError, ModelFileError
from kdtflite.litemodel import LiteModel, TensorSpec
from kdtflite.metadata import DETAILS, ENTRY, has_metadata

__all__ = ["Normalisation", "add_metadata", "check_metadata"]

Values = float | Sequence[float]
Normalisation = tuple[Values, Values]
"""Mean and standard deviation, each one value or one a channel."""

_FORMAT = "kdtflite-metadata-1"
# What readers must understand at least: none of the fields written here is younger.
_PARSER_VERSION = "1.0.0"


def add_metadata(
    lite: LiteModel,
    *,
    name: str = "",
    description: str = "",
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    normalisation: Normalisation | Mapping[str, Normalisation] | None = None,
    version: str = "",
    author: str = "",
    license: str = "",
    details: Mapping[str, Any] | None = None,
) -> LiteModel:
    """Returns the file with metadata in TensorFlow Lite's standard format.

    Every byte that the file had stays as it is, behind a new root that names the metadata, so
    that tensors, operators and arithmetic are the same. The associated files (labels.txt, and
    kdtflite.json with what the standard has no field for) lie behind the model as a zip archive.
    Two calls give the same bytes.

    Args:
        lite: A file without metadata.
        name: The model's name.
        description: What it does.
        labels: Name of each class of the output, in the order of its last dimension; two for a
            single probability. For several outputs a dict by output name.
        normalisation: (mean, std), each one number or one a channel: the model was trained on
            (pixel - mean) / std, where a pixel is 0..255. For inputs from 0 to 1 it is (0, 255).
            For several inputs a dict by input name.
        version: The model's version.
        author: Who made it.
        license: Its licence, best as an SPDX identifier.
        details: Plain values to add to kdtflite.json, beside kdtflite's version.

    Raises:
        ConfigurationError: Labels or a normalisation that do not fit the file.
        ModelFileError: The file has metadata already, or keeps its weights behind the model.
    """
    if has_metadata(lite.content):
        raise ModelFileError(
            "Expected a file without metadata. Received: one that has them already. Add them to "
            "the file as it was converted."
        )
    lists = _by_name(labels, lite.outputs, "labels", "output")
    scalings = _by_name(normalisation, lite.inputs, "normalisation", "input")
    files: dict[str, bytes] = {}
    inputs = [_input(spec, scalings.get(spec.name)) for spec in lite.inputs]
    outputs = []
    for spec in lite.outputs:
        path = f"labels_{spec.name}.txt" if len(lists) > 1 else "labels.txt"
        outputs.append(_output(spec, path if spec.name in lists else None))
        if spec.name in lists:
            files[path] = ("\n".join(_checked_labels(spec, lists[spec.name])) + "\n").encode()
    from kdtflite import __version__

    about = {"format": _FORMAT, "kdtflite": __version__, **(details or {})}
    files[DETAILS] = (json.dumps(about, indent=1) + "\n").encode()
    model = schema.ModelMetadataT(
        name=name or None,
        description=description or None,
        version=version or None,
        author=author or None,
        license=license or None,
        subgraphMetadata=[
            schema.SubGraphMetadataT(inputTensorMetadata=inputs, outputTensorMetadata=outputs)
        ],
        associatedFiles=[
            schema.AssociatedFileT(
                name=DETAILS,
                description="What kdtflite adds to the standard metadata.",
                type=schema.AssociatedFileType.DESCRIPTIONS,
            )
        ],
        minParserVersion=_PARSER_VERSION,
    )
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"M001")
    return LiteModel(_archived(with_metadata(lite.content, ENTRY, bytes(builder.Output())), files))


def check_metadata(
    *,
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    normalisation: Normalisation | Mapping[str, Normalisation] | None = None,
) -> None:
    """Refuses what can be told to be wrong before there is a file, and so before the conversion.

    Raises:
        ConfigurationError: Labels that are no texts of one line, or a std that is not positive.
    """
    given = labels.values() if isinstance(labels, Mapping) else [] if labels is None else [labels]
    for names in given:
        _check_texts(names)
    scalings: list[Any] = []
    if normalisation is not None:
        is_dict = isinstance(normalisation, Mapping)
        scalings = list(normalisation.values()) if is_dict else [normalisation]  # type: ignore[union-attr]
    for scaling in scalings:
        _mean_and_std(scaling)


def _by_name(given: Any, specs: Sequence[TensorSpec], what: str, role: str) -> dict[str, Any]:
    if given is None:
        return {}
    names = [spec.name for spec in specs]
    if not isinstance(given, Mapping):
        if len(names) > 1:
            raise ConfigurationError(
                f"This file has {len(names)} {role}s. Expected `{what}` as a dict by {role} name, "
                f"of {', '.join(names)}. Received: one {type(given).__name__}."
            )
        return {names[0]: given}
    unknown = [str(name) for name in given if name not in names]
    if unknown:
        raise ConfigurationError(
            f"Expected `{what}` for {role}s named {', '.join(names)}. Received: "
            f"{', '.join(unknown)}."
        )
    return dict(given)


def _check_texts(labels: Any) -> list[str]:
    if isinstance(labels, str):
        raise ConfigurationError(
            f"Expected `labels` as a list of names. Received: the text {labels[:40]!r}."
        )
    texts = [str(label) for label in labels]
    for number, text in enumerate(texts):
        # They are the lines of a file, of which readers leave out the blank ones.
        if not text.strip() or len(text.splitlines()) != 1 or text != text.strip():
            raise ConfigurationError(
                "Expected each of `labels` as a text of one line without blanks around it. "
                f"Received: {text!r} for class {number}."
            )
    return texts


def _checked_labels(spec: TensorSpec, labels: Any) -> list[str]:
    texts = _check_texts(labels)
    classes = spec.shape[-1] if spec.shape else 1
    expected = 2 if classes == 1 else classes
    if len(texts) != expected:
        raise ConfigurationError(
            f"Expected {expected} labels, one a class of output {spec.name} of shape {spec.shape}. "
            f"Received: {len(texts)}."
        )
    return texts


def _mean_and_std(normalisation: Any) -> tuple[list[float], list[float]]:
    try:
        mean, std = (np.atleast_1d(np.asarray(values, np.float64)) for values in normalisation)
    except (TypeError, ValueError):
        mean = std = np.empty((0, 0))
    sound = mean.ndim == std.ndim == 1 and mean.size and std.size
    if not sound or not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ConfigurationError(
            "Expected `normalisation` as (mean, std), each a finite number or one a channel, and "
            f"std above 0. Received: {normalisation!r}."
        )
    return mean.tolist(), std.tolist()


def _input(spec: TensorSpec, normalisation: Any) -> Any:
    tensor = schema.TensorMetadataT(name=spec.name, content=_features())
    if normalisation is None:
        return tensor
    mean, std = _mean_and_std(normalisation)
    channels = spec.shape[-1] if spec.shape else 1
    if {len(mean), len(std)} - {1, channels}:
        raise ConfigurationError(
            f"Expected mean and std of `normalisation` as one value or {channels}, one a channel "
            f"of input {spec.name} of shape {spec.shape}. Received: {len(mean)} and {len(std)}."
        )
    # Readers take as many of the one as of the other.
    longest = max(len(mean), len(std))
    tensor.processUnits = [
        schema.ProcessUnitT(
            optionsType=schema.ProcessUnitOptions.NormalizationOptions,
            options=schema.NormalizationOptionsT(
                mean=mean * (longest // len(mean)), std=std * (longest // len(std))
            ),
        )
    ]
    if len(spec.shape) == 4 and channels in (1, 3):
        colours = schema.ColorSpaceType
        tensor.content = schema.ContentT(
            contentPropertiesType=schema.ContentProperties.ImageProperties,
            contentProperties=schema.ImagePropertiesT(
                colorSpace=colours.GRAYSCALE if channels == 1 else colours.RGB
            ),
        )
    return tensor


def _output(spec: TensorSpec, labels: str | None) -> Any:
    tensor = schema.TensorMetadataT(name=spec.name, content=_features())
    if labels is not None:
        tensor.associatedFiles = [
            schema.AssociatedFileT(
                name=labels,
                description="Name of each class, a line each.",
                type=schema.AssociatedFileType.TENSOR_AXIS_LABELS,
            )
        ]
    return tensor


def _features() -> Any:
    return schema.ContentT(
        contentPropertiesType=schema.ContentProperties.FeatureProperties,
        contentProperties=schema.FeaturePropertiesT(),
    )


def _archived(content: bytes, files: Mapping[str, bytes]) -> bytes:
    """Returns the model with a zip archive behind it, whose offsets count from the file's start."""
    file = io.BytesIO()
    file.write(content)
    # Mode "w", where the file is: "a" would first look for an archive among the weights.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980: the time of the call would change the bytes
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return file.getvalue()
