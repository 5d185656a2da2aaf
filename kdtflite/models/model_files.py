"""What a model file says about itself, read without running anything in it."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdtflite.errors import ModelFileError

__all__ = ["ModelFile", "open_model_file"]

Format = Literal["keras", "h5", "savedmodel"]

_ENDINGS: dict[str, Format] = {".keras": "keras", ".h5": "h5", ".hdf5": "h5"}
_EXPECTED = "Expected a .keras, .h5 or .hdf5 file, or a SavedModel folder."
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class ModelFile:
    """A model file that is whole, and what it says about itself.

    Attributes:
        path: Where it is.
        format: "keras" (a zip), "h5" or "savedmodel".
        generation: 2 or 3, the Keras that wrote it.
        configs: The configurations in it, parsed from JSON.
    """

    path: Path
    format: Format
    generation: int
    configs: list[Any]


def open_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Checks that a model file is whole, and reads its configuration.

    Raises:
        ModelFileError: It is missing, empty, damaged, cut short, or of another format.
    """
    path = Path(path)
    if path.is_dir():
        return _saved_model(path)
    if not path.exists():
        raise ModelFileError(f"There is no file or folder {path}. {_EXPECTED}")
    kind = _ENDINGS.get(path.suffix.lower())
    if kind is None:
        hint = (
            " A .tflite file is a finished product: it can be evaluated, not trained."
            if path.suffix == ".tflite"
            else ""
        )
        raise ModelFileError(
            f"{path} has the ending {path.suffix!r}. Expected one of .keras, .h5, .hdf5, or a "
            f"SavedModel folder.{hint}"
        )
    if not os.access(path, os.R_OK):
        raise ModelFileError(f"{path} may not be read. Change its permissions (chmod +r).")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty (0 bytes). Save or copy the model again.")
    return _keras_zip(path) if kind == "keras" else _hdf5(path)


def _keras_zip(path: Path) -> ModelFile:
    with open(path, "rb") as file:
        start = file.read(8)
    if start == _HDF5_SIGNATURE:
        raise ModelFileError(f"{path} is an HDF5 file. Rename it so that it ends in .h5.")
    if not start.startswith(b"PK"):
        raise ModelFileError(
            f"{path} is no Keras file. Expected a zip archive, received bytes that start with "
            f"{start!r}. Save the model again with model.save()."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            missing = {"config.json", "metadata.json", "model.weights.h5"} - names
            if missing:
                raise ModelFileError(
                    f"{path} is a zip archive, but no Keras model: {', '.join(sorted(missing))} "
                    "is missing in it. Save the model again with model.save()."
                )
            bad = archive.testzip()
            if bad is not None:
                raise ModelFileError(f"{path} is damaged at {bad}. Save or copy the model again.")
            config = json.loads(archive.read("config.json"))
            metadata = json.loads(archive.read("metadata.json"))
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ModelFileError(
            f"{path} is damaged or cut short ({error}). Save or copy the model again."
        ) from error
    except ValueError as error:
        raise ModelFileError(
            f"{path} is damaged: its configuration is no JSON ({error}). Save the model again."
        ) from error
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return ModelFile(path, "keras", _generation(path, version), [config])


def _hdf5(path: Path) -> ModelFile:
    import h5py

    with open(path, "rb") as opened:
        start = opened.read(8)
    if start.startswith(b"PK"):
        raise ModelFileError(f"{path} is a zip archive. Rename it so that it ends in .keras.")
    if start != _HDF5_SIGNATURE:
        raise ModelFileError(
            f"{path} is no HDF5 file: it starts with the bytes {start!r}. Save the model again "
            "with model.save()."
        )
    try:
        with h5py.File(path, "r") as file:
            text, version = file.attrs.get("model_config"), file.attrs.get("keras_version")
    except (OSError, KeyError, RuntimeError) as error:
        raise ModelFileError(
            f"{path} is damaged or cut short ({str(error).splitlines()[0]}). "
            "Save or copy the model again."
        ) from error
    if text is None:
        raise ModelFileError(
            f"{path} holds weights, but no model. Build the model in Python, call "
            f"model.load_weights({path.name!r}), and hand over the model or save it whole."
        )
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ModelFileError(
            f"{path} is damaged: its configuration is no JSON ({error}). Save the model again."
        ) from error
    version = version.decode() if isinstance(version, bytes) else version
    return ModelFile(path, "h5", _generation(path, version or "2"), [config])


def _saved_model(path: Path) -> ModelFile:
    if not (path / "saved_model.pb").is_file():
        raise ModelFileError(
            f"{path} is a folder, but no SavedModel: saved_model.pb is missing in it. {_EXPECTED}"
        )
    metadata = path / "keras_metadata.pb"
    if not metadata.is_file():
        raise ModelFileError(
            f"{path} is a SavedModel without Keras layers (Keras 3's model.export() writes such "
            "ones). It can be converted to .tflite directly, but not trained or distilled. Save "
            "the Keras model with model.save('model.keras') to do more."
        )
    from google.protobuf.message import DecodeError
    from tf_keras.protobuf import saved_metadata_pb2

    message = saved_metadata_pb2.SavedMetadata()
    try:
        message.ParseFromString(metadata.read_bytes())
        configs = [json.loads(node.metadata) for node in message.nodes if node.metadata]
    except (DecodeError, ValueError) as error:
        raise ModelFileError(
            f"{metadata} is damaged ({error}). Save or copy the model again."
        ) from error
    if not configs:
        raise ModelFileError(f"{metadata} is empty. Save or copy the model again.")
    return ModelFile(path, "savedmodel", 2, configs)


def _generation(path: Path, version: Any) -> int:
    major = str(version).split(".")[0]
    if not major.isdigit():
        raise ModelFileError(
            f"{path} does not say which Keras wrote it (keras_version={version!r}). "
            "Save the model again with model.save()."
        )
    return 3 if int(major) >= 3 else 2
