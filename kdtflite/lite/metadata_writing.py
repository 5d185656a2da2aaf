"""Writes labels, normalization and a description into a .tflite file, in the standard format."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, ModelFileError
from kdtflite.lite._generated import metadata_schema as schema
from kdtflite.lite.metadata import DETAILS, ENTRY, has_metadata
from kdtflite.lite.metadata_entry import add_metadata_entry
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.lite.tensors import TensorSpec

__all__ = ["Normalization", "add_metadata", "check_metadata"]

Values = float | Sequence[float]
Normalization = tuple[Values, Values]
"""Mean and standard deviation, each one value or one per channel."""

_FORMAT = "kdtflite-metadata-1"
# The oldest reader that understands the file: no field written here is newer.
_PARSER_VERSION = "1.0.0"


@check_arguments
def add_metadata(
    lite: Any,
    *,
    name: str = "",
    description: str = "",
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    normalization: Normalization | Mapping[str, Normalization] | None = None,
    version: str = "",
    author: str = "",
    license: str = "",
    details: Mapping[str, Any] | None = None,
) -> LiteModel:
    """Returns the file with metadata in TensorFlow Lite's standard format.

    Every byte of the file stays as it is, behind a new root that refers to the metadata, so
    tensors, operators and arithmetic are the same. The associated files (labels.txt, and
    kdtflite.json for whatever the standard has no field for) follow the model as a zip archive.
    Two calls return the same bytes.

    Args:
        lite: A file without metadata: a LiteModel, its bytes or its path.
        name: The model's name.
        description: What it does.
        labels: Name of each class of the output, in the order of its last dimension; two for a
            single probability. For several outputs, a dict by output name.
        normalization: (mean, std), each one number or one per channel: the model was trained on
            (pixel - mean) / std of pixels 0..255. For inputs from 0 to 1 it is (0, 255). For
            several inputs, a dict by input name.
        version: The model's version.
        author: Who made it.
        license: Its license, preferably an SPDX identifier.
        details: Plain values to add to kdtflite.json, beside kdtflite's version.

    Raises:
        ConfigurationError: The labels or the normalization do not fit the file.
        ModelFileError: The file already has metadata, or keeps its weights behind the model.
        UnsupportedModelError: `lite` is not a .tflite file.

    Example:
        >>> import kdtflite, tf_keras as keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> lite = kdtflite.convert(model, target="float32", progress=False)
        >>> kdtflite.add_metadata(lite, labels=["cat", "dog"]).metadata.labels
        ('cat', 'dog')
    """
    lite = as_lite_model(lite)
    if has_metadata(lite.content):
        raise ModelFileError(
            "Expected a file without metadata. Received: one that already has some. Add it to "
            "the file as it was converted."
        )
    lists = _map_by_name(labels, lite.outputs, "labels", "output")
    scalings = _map_by_name(normalization, lite.inputs, "normalization", "input")
    files: dict[str, bytes] = {}
    inputs = [_describe_input(spec, scalings.get(spec.name)) for spec in lite.inputs]
    outputs = []
    for spec in lite.outputs:
        path = f"labels_{spec.name}.txt" if len(lists) > 1 else "labels.txt"
        outputs.append(_describe_output(spec, path if spec.name in lists else None))
        if spec.name in lists:
            files[path] = ("\n".join(_check_labels(spec, lists[spec.name])) + "\n").encode()
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
    content = add_metadata_entry(lite.content, ENTRY, bytes(builder.Output()))
    return LiteModel(_append_archive(content, files), tensor_names=lite.tensor_names)


def check_metadata(
    *,
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    normalization: Normalization | Mapping[str, Normalization] | None = None,
) -> None:
    """Checks what can be checked without a file, and so before a conversion.

    Raises:
        ConfigurationError: A label is not a text of one line, or a std is not positive.
    """
    given = labels.values() if isinstance(labels, Mapping) else [] if labels is None else [labels]
    for names in given:
        _check_texts(names)
    scalings: list[Any] = []
    if normalization is not None:
        is_dict = isinstance(normalization, Mapping)
        scalings = list(normalization.values()) if is_dict else [normalization]  # type: ignore[union-attr]
    for scaling in scalings:
        _to_mean_and_std(scaling)


def _map_by_name(given: Any, specs: Sequence[TensorSpec], what: str, role: str) -> dict[str, Any]:
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
    texts = [str(label) for label in labels]
    for number, text in enumerate(texts):
        # They become the lines of a file, and readers skip blank ones.
        if not text.strip() or len(text.splitlines()) != 1 or text != text.strip():
            raise ConfigurationError(
                "Expected each of `labels` as a text of one line without blanks around it. "
                f"Received: {text!r} for class {number}."
            )
    return texts


def _check_labels(spec: TensorSpec, labels: Any) -> list[str]:
    texts = _check_texts(labels)
    classes = spec.shape[-1] if spec.shape else 1
    expected = 2 if classes == 1 else classes
    if len(texts) != expected:
        raise ConfigurationError(
            f"Expected {expected} labels, one per class of output {spec.name} of shape "
            f"{spec.shape}. Received: {len(texts)}."
        )
    return texts


def _to_mean_and_std(normalization: Any) -> tuple[list[float], list[float]]:
    try:
        mean, std = (np.atleast_1d(np.asarray(values, np.float64)) for values in normalization)
    except (TypeError, ValueError):
        mean = std = np.empty((0, 0))
    sound = mean.ndim == std.ndim == 1 and mean.size and std.size
    if not sound or not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ConfigurationError(
            "Expected `normalization` as (mean, std), each a finite number or one per channel, and "
            f"std above 0. Received: {normalization!r}."
        )
    return mean.tolist(), std.tolist()


def _describe_input(spec: TensorSpec, normalization: Any) -> Any:
    tensor = schema.TensorMetadataT(name=spec.name, content=_feature_content())
    if normalization is None:
        return tensor
    mean, std = _to_mean_and_std(normalization)
    channels = spec.shape[-1] if spec.shape else 1
    if {len(mean), len(std)} - {1, channels}:
        raise ConfigurationError(
            f"Expected mean and std of `normalization` as one value or {channels}, one per channel "
            f"of input {spec.name} of shape {spec.shape}. Received: {len(mean)} and {len(std)}."
        )
    # Readers expect as many means as stds.
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
        colors = schema.ColorSpaceType
        tensor.content = schema.ContentT(
            contentPropertiesType=schema.ContentProperties.ImageProperties,
            contentProperties=schema.ImagePropertiesT(
                colorSpace=colors.GRAYSCALE if channels == 1 else colors.RGB
            ),
        )
    return tensor


def _describe_output(spec: TensorSpec, labels: str | None) -> Any:
    tensor = schema.TensorMetadataT(name=spec.name, content=_feature_content())
    if labels is not None:
        tensor.associatedFiles = [
            schema.AssociatedFileT(
                name=labels,
                description="Name of each class, a line each.",
                type=schema.AssociatedFileType.TENSOR_AXIS_LABELS,
            )
        ]
    return tensor


def _feature_content() -> Any:
    return schema.ContentT(
        contentPropertiesType=schema.ContentProperties.FeatureProperties,
        contentProperties=schema.FeaturePropertiesT(),
    )


def _append_archive(content: bytes, files: Mapping[str, bytes]) -> bytes:
    """Returns the model followed by a zip archive whose offsets count from the file's start."""
    file = io.BytesIO()
    file.write(content)
    # Mode "w": "a" would first search the weights for an archive.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980: the current time would change the bytes
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return file.getvalue()
