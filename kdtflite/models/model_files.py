"""Reads the configuration of a model file without running anything in it."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdtflite.errors import ModelFileError, to_line
from kdtflite.models.trust.archives import check_archive
from kdtflite.models.trust.hdf5 import check_storage, measure_longest_text
from kdtflite.models.trust.json_texts import parse_json

__all__ = ["ModelFile", "open_model_file"]

Format = Literal["keras", "h5", "savedmodel"]

_ENDINGS: dict[str, Format] = {".keras": "keras", ".h5": "h5", ".hdf5": "h5"}
_EXPECTED = "Expected a .keras, .h5 or .hdf5 file, or a SavedModel folder."
_METRIC = "_tf_keras_metric"
_WEIGHTS = "model.weights.h5"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HDF5_ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError)  # h5py has none of its own


@dataclass(frozen=True)
class ModelFile:
    """A model file that was checked, and its configuration.

    Attributes:
        path: The file or folder.
        format: "keras" (a zip), "h5" or "savedmodel".
        generation: The version of Keras that wrote it, 2 or 3.
        configs: The configurations in it, parsed from JSON.
        weight_bytes: The size of all its weights in memory; 0 for a SavedModel, whose weights are
            not listed here.
    """

    path: Path
    format: Format
    generation: int
    configs: list[Any]
    weight_bytes: int


def open_model_file(path: str | os.PathLike[str], *, unsafe: bool = False) -> ModelFile:
    """Checks that a model file is complete and self-contained, and reads its configuration.

    Args:
        path: The file or folder.
        unsafe: Allow weights that are in other files, and any size.

    Raises:
        ModelFileError: The file is missing, empty, damaged, cut short, of another format, would
            read other files, or would take far more memory than it has bytes.
    """
    path = Path(path)
    if path.is_dir():
        return _read_saved_model(path)
    if not path.exists():
        raise ModelFileError(f"There is no file or folder {path}. {_EXPECTED}")
    kind = _ENDINGS.get(path.suffix.lower())
    if kind is None:
        hint = " A .tflite file can be evaluated, not trained." if path.suffix == ".tflite" else ""
        raise ModelFileError(
            f"{path} has the ending {path.suffix!r}. Expected one of .keras, .h5, .hdf5, or a "
            f"SavedModel folder.{hint}"
        )
    if not os.access(path, os.R_OK):
        raise ModelFileError(f"{path} may not be read. Change its permissions (chmod +r).")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path} is empty (0 bytes). Save or copy the model again.")
    return (_read_keras_zip if kind == "keras" else _read_hdf5)(path, unsafe)


def _read_keras_zip(path: Path, unsafe: bool) -> ModelFile:
    with open(path, "rb") as file:
        start = file.read(8)
    if start == _HDF5_SIGNATURE:
        raise ModelFileError(f"{path} is an HDF5 file. Rename it so that it ends in .h5.")
    if not start.startswith(b"PK"):
        raise ModelFileError(
            f"{path} is not a Keras file. Expected a zip archive, received bytes that start with "
            f"{start!r}. Save the model again with model.save()."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            missing = {"config.json", "metadata.json", _WEIGHTS} - names
            if missing:
                raise ModelFileError(
                    f"{path} is a zip archive, but not a Keras model: it lacks "
                    f"{', '.join(sorted(missing))}. Save the model again with model.save()."
                )
            check_archive(archive, path, unsafe=unsafe)
            bad = archive.testzip()
            if bad is not None:
                raise ModelFileError(f"{path} is damaged at {bad}. Save or copy the model again.")
            config = parse_json(archive.read("config.json"), path, "configuration")
            metadata = parse_json(archive.read("metadata.json"), path, "metadata")
            weight_bytes = _check_weights(archive, path, unsafe)
    except ModelFileError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,  # zipfile has no error class for what it does not support
        ValueError,  # a name that is not UTF-8
    ) as error:
        raise ModelFileError(
            f"{path} is damaged or cut short ({error}). Save or copy the model again."
        ) from error
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return ModelFile(path, "keras", _find_generation(path, version), [config], weight_bytes)


def _check_weights(archive: zipfile.ZipFile, path: Path, unsafe: bool) -> int:
    """Returns the size of the weights in memory."""
    import h5py

    with archive.open(_WEIGHTS) as member:
        # HDF5 jumps about in its file, and each jump back would unpack a deflated one again.
        stored = archive.getinfo(_WEIGHTS).compress_type == zipfile.ZIP_STORED
        seekable = member if stored else io.BytesIO(member.read())
        try:
            with h5py.File(seekable, "r") as file:
                return check_storage(file, path, path.stat().st_size, unsafe=unsafe)
        except ModelFileError:
            raise
        except _HDF5_ERRORS as error:
            raise ModelFileError(
                f"{path} is damaged at {_WEIGHTS} ({to_line(error)[:200]}). "
                "Save or copy the model again."
            ) from error


def _read_hdf5(path: Path, unsafe: bool) -> ModelFile:
    import h5py

    with open(path, "rb") as opened:
        start = opened.read(8)
    if start.startswith(b"PK"):
        raise ModelFileError(f"{path} is a zip archive. Rename it so that it ends in .keras.")
    if start != _HDF5_SIGNATURE:
        raise ModelFileError(
            f"{path} is not an HDF5 file: it starts with the bytes {start!r}. Save the model again "
            "with model.save()."
        )
    try:
        with h5py.File(path, "r") as file:
            weight_bytes = check_storage(
                file,
                path,
                path.stat().st_size,
                longest=measure_longest_text(path),
                unsafe=unsafe,
            )
            text, version = file.attrs.get("model_config"), file.attrs.get("keras_version")
    except ModelFileError:
        raise
    except _HDF5_ERRORS as error:
        raise ModelFileError(
            f"{path} is damaged or cut short ({to_line(error)[:200]}). "
            "Save or copy the model again."
        ) from error
    if text is None:
        raise ModelFileError(
            f"{path} holds weights, but no model. Build the model in Python, call "
            f"model.load_weights({path.name!r}), and pass the model, or save it with model.save()."
        )
    if not isinstance(text, str | bytes):
        raise ModelFileError(
            f"{path} is damaged: its configuration is a {type(text).__name__}, not text. "
            "Save the model again."
        )
    config = parse_json(text, path, "configuration")
    version = version.decode(errors="replace") if isinstance(version, bytes) else version
    return ModelFile(path, "h5", _find_generation(path, version or "2"), [config], weight_bytes)


def _read_saved_model(path: Path) -> ModelFile:
    if not (path / "saved_model.pb").is_file():
        raise ModelFileError(
            f"{path} is a folder, but not a SavedModel: it lacks saved_model.pb. {_EXPECTED}"
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
    except DecodeError as error:
        raise ModelFileError(
            f"{metadata} is damaged ({error}). Save or copy the model again."
        ) from error
    nodes = [node for node in message.nodes if node.metadata]
    configs = [parse_json(node.metadata, metadata, "configuration") for node in nodes]
    # A metric that Keras does not know is not rebuilt, and not needed.
    configs = [
        config
        for config, node in zip(configs, nodes, strict=True)
        if node.identifier != _METRIC or _is_of_keras(config)
    ]
    if not configs:
        raise ModelFileError(f"{metadata} is empty. Save or copy the model again.")
    return ModelFile(path, "savedmodel", 2, configs, 0)


def _is_of_keras(config: Any) -> bool:
    """Says whether Keras would find a class by the name in a metric's configuration."""
    import tf_keras as keras

    name = config.get("class_name") if isinstance(config, dict) else None
    # What starts with a capital is a class. All of those in Keras are public.
    return not isinstance(name, str) or not name[:1].isupper() or hasattr(keras.metrics, name)


def _find_generation(path: Path, version: Any) -> int:
    major = str(version).split(".")[0]
    if not major.isdigit():
        raise ModelFileError(
            f"{path} does not say which Keras wrote it (keras_version={version!r}). "
            "Save the model again with model.save()."
        )
    return 3 if int(major) >= 3 else 2
