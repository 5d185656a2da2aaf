"""convert: a Keras model and representative data become a proven .tflite file."""

from __future__ import annotations

import json
import keyword
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.conversion.four_bits import require_quantizer
from kdtflite.conversion.metadata import Normalisation, add_metadata, check_metadata
from kdtflite.conversion.proof import prove_target
from kdtflite.conversion.targets import Target, get_target
from kdtflite.data.representative import (
    DEFAULT_SAMPLES,
    InputSpec,
    RepresentativeData,
    representative,
)
from kdtflite.errors import (
    ConversionError,
    KdtfliteError,
    ModelFileError,
    NotFullyIntegerError,
    one_line,
)
from kdtflite.litemodel import LiteModel
from kdtflite.models.as_functional import as_functional
from kdtflite.models.float32 import in_float32
from kdtflite.progress import track

__all__ = ["convert"]

_LOG_LINES = 3


def convert(
    model: Any,
    representative_data: Any = None,
    target: str = "int8",
    *,
    io_dtype: str | None = None,
    input_range: tuple[float, float] | None = None,
    samples: int = DEFAULT_SAMPLES,
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    normalisation: Normalisation | Mapping[str, Normalisation] | None = None,
    description: str | None = None,
    author: str | None = None,
    license: str | None = None,
    progress: bool = True,
) -> LiteModel:
    """Converts a model and hands out the file only if it is what the target promises.

    The converter runs in a process of its own, so that its crash is an error and not the end of
    the notebook.

    Args:
        model: A tf_keras or Keras 3 model (float, or quantization-aware), a Distiller, whose
            student is meant, or the path of a SavedModel folder.
        representative_data: Samples that calibrate the activations, as
            `kdtflite.data.representative` takes them. Fully integer targets need them even
            where every range is trained; the others take none.
        target: "int8" or "int16x8" (both proven fully integer), "float16", "dynamic", "int4",
            "int4_blockwise" or "float32"; `kdtflite.conversion.TARGETS` has what each promises.
            Only "int8" takes the ranges that a quantization-aware model was trained with: for
            the others its fake quantization is taken off first, and "int16x8" is calibrated
            from the representative data.
        io_dtype: "int8" (the default of target "int8") or "uint8" inputs and outputs. The other
            targets have one dtype each.
        input_range: Least and greatest input value in training; data of another scaling are
            refused. A quantization-aware model knows its own.
        samples: The most samples to calibrate with.
        labels: Name of each class, for the file's metadata. With this or one of the next four
            the file gets metadata in TensorFlow Lite's standard format (`add_metadata`);
            without, none. Its arithmetic is the same.
        normalisation: (mean, std): the model was trained on (pixel - mean) / std of pixels
            0..255, for the metadata.
        description: What the model does, for the metadata.
        author: Who made it, for the metadata.
        license: Its licence, for the metadata.
        progress: Show a progress bar.

    Returns:
        The file in memory. Nothing is written.

    Raises:
        NotFullyIntegerError: A float tensor, a Flex or custom operator, or float inputs or
            outputs in a file that should be fully integer; names operator, tensor and layer.
        DataError: The representative data do not fit the model.
        ConversionError: The converter failed or died, or the file is not what its target
            promises (see `prove_target`).
        ConfigurationError: No such target or io_dtype, a package that it needs is missing, or
            labels or a normalisation that do not fit the model.
    """
    check_metadata(labels=labels, normalisation=normalisation)
    about: dict[str, Any] = {
        "labels": labels,
        "normalisation": normalisation,
        "description": description,
        "author": author,
        "license": license,
    }
    about = {key: value for key, value in about.items() if value is not None}
    promised = get_target(target)
    io = promised.choose_io(io_dtype)
    if promised.weights == "int4":
        require_quantizer(f"Target {target!r}")
    folder = Path(tempfile.mkdtemp(prefix="kdtflite-"))
    try:
        saved = _saved_model(model, folder / "model", input_range, promised)
        data = None
        if promised.fully_integer:
            data = representative(representative_data, saved.inputs, limit=samples)
        lite = _converted(folder, saved, promised, io, data, progress)
    except OSError as error:
        if isinstance(error, KdtfliteError):
            raise
        raise ConversionError(
            f"The conversion could not write its temporary files in {folder.parent}: "
            f"{error.strerror or error}. Free some space, or set TMPDIR to another folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if about:
        lite = add_metadata(lite, name=saved.name, details={"target": target}, **about)
    prove_target(lite, target, layers=saved.layers)
    return lite


@dataclass(frozen=True)
class _SavedModel:
    """A SavedModel on disk: its inputs as the user knows them and as its signature calls them."""

    path: Path
    name: str
    inputs: list[InputSpec]
    arguments: list[str]
    layers: list[str]


def _converted(
    folder: Path,
    saved: _SavedModel,
    target: Target,
    io: str,
    data: RepresentativeData | None,
    progress: bool,
) -> LiteModel:
    job = {
        "model": str(saved.path),
        "target": target.name,
        "io_dtype": io,
        "inputs": saved.arguments,
    }
    (folder / "job.json").write_text(json.dumps(job))
    if data is not None:
        for i, spec in enumerate(saved.inputs):
            np.save(folder / f"samples_{i}.npy", data.samples[spec.name])
    code, log = _run_worker(folder, len(data) if data is not None else 0, progress)
    if code != 0:
        raise _failure(folder, code, log, saved.layers, target)
    return LiteModel((folder / "model.tflite").read_bytes())


def _student_of(model: Any) -> Any:
    from kdtflite.distillation.distiller import Distiller

    return model.student if isinstance(model, Distiller) else model


def _saved_model(
    model: Any, folder: Path, input_range: tuple[float, float] | None, target: Target
) -> _SavedModel:
    """Returns a SavedModel whose signature has the model's own input and output names."""
    if isinstance(model, str | os.PathLike):
        return _given_saved_model(Path(model), input_range)
    import tensorflow as tf

    keras_model = in_float32(as_functional(_student_of(model)))
    trained = _trained_ranges(keras_model)
    if target.name != "int8":
        keras_model = _without_fake_quantization(keras_model)
    names = list(keras_model.input_names)
    inputs = [
        InputSpec(
            name, tuple(tensor.shape[1:]), tensor.dtype.name, input_range or trained.get(name)
        )
        for name, tensor in zip(names, keras_model.inputs, strict=True)
    ]
    arguments = _identifiers(names)
    structure = getattr(keras_model, "_nested_inputs", keras_model.inputs)

    def serve(**given: Any) -> dict[str, Any]:
        flat = [given[argument] for argument in arguments]
        outputs = keras_model(tf.nest.pack_sequence_as(structure, flat), training=False)
        flat_outputs = tf.nest.flatten(outputs)
        return dict(zip(_output_names(keras_model), flat_outputs, strict=True))

    specs = {
        argument: tf.TensorSpec((None, *spec.shape), spec.dtype, name=argument)
        for argument, spec in zip(arguments, inputs, strict=True)
    }
    module = tf.Module()
    # Its variables, not the model: a Keras model in the module would have each of its layers
    # traced and saved as well, which takes long, and fails where a layer cannot stand alone.
    module.held, module.serve = list(keras_model.variables), tf.function(serve, autograph=False)
    try:
        signature = module.serve.get_concrete_function(**specs)
        tf.saved_model.save(module, str(folder), signatures=signature)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ConversionError(
            f"The model {keras_model.name!r} cannot be saved as a graph: {one_line(error)[:400]}. "
            "A layer of your own that works on Python values is the usual cause."
        ) from error
    layers = [layer.name for layer in _all_layers(keras_model)]
    return _SavedModel(folder, keras_model.name, inputs, arguments, layers)


def _given_saved_model(path: Path, input_range: tuple[float, float] | None) -> _SavedModel:
    if not (path / "saved_model.pb").is_file():
        raise ModelFileError(
            f"Expected a SavedModel folder (with saved_model.pb) at {path}. "
            "Load .keras and .h5 files with kdtflite.models.load_model() first."
        )
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise ModelFileError(f"The SavedModel at {path} cannot be read: {error}") from error
    signature = loaded.signatures.get("serving_default")
    if signature is None:
        raise ModelFileError(
            f"The SavedModel at {path} has no signature 'serving_default'. Received: "
            f"{', '.join(loaded.signatures) or 'none'}. Save it with model.export()."
        )
    inputs = [
        InputSpec(name, tuple(spec.shape[1:]), spec.dtype.name, input_range)
        for name, spec in signature.structured_input_signature[1].items()
    ]
    return _SavedModel(path, path.resolve().name, inputs, [spec.name for spec in inputs], [])


def _trained_ranges(model: Any) -> dict[str, tuple[float, float]]:
    from kdtflite.quantization.ranges import input_ranges

    return input_ranges(model)


def _without_fake_quantization(model: Any) -> Any:
    # Its ranges are for int8 activations: a float file would round to them for nothing, and
    # 65,536 codes would be laid over what 256 could hold.
    from kdtflite.quantization.strip import is_quantization_aware, strip

    return strip(model) if is_quantization_aware(model) else model


def _output_names(model: Any) -> list[str]:
    return _identifiers(name.removeprefix("quant_") for name in model.output_names)


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield getattr(layer, "layer", layer)
        if hasattr(layer, "layers"):
            yield from _all_layers(layer)


def _identifiers(names: Iterable[str]) -> list[str]:
    """Returns `names` as distinct Python identifiers, which signatures demand of arguments."""
    taken: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        if not plain.isidentifier() or keyword.iskeyword(plain):
            plain = f"x_{plain}"
        while plain in taken:
            plain += "_"
        taken.append(plain)
    return taken


def _run_worker(folder: Path, samples: int, progress: bool) -> tuple[int, str]:
    """Runs the converter and returns its exit code and what it wrote on stderr."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in (root, environment.get("PYTHONPATH")) if part
    )
    # A GPU held by this process would be no use to the converter.
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    # Keras 3, of no use here either, would import scikit-learn and matplotlib: a second.
    environment["TF_USE_LEGACY_KERAS"] = "1"
    with open(folder / "log.txt", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kdtflite.conversion.worker", str(folder)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
        try:
            assert process.stdout is not None
            lines = (line for line in process.stdout if line == "sample\n")
            for _ in track(lines, "Calibrating", total=samples, quiet=not progress):
                pass
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        return code, log.read()


def _failure(folder: Path, code: int, log: str, layers: list[str], target: Target) -> KdtfliteError:
    """Returns the error that says why there is no file."""
    if code < 0:
        last = " ".join(log.strip().splitlines()[-_LOG_LINES:])
        return ConversionError(
            f"TensorFlow Lite's converter crashed ({signal.Signals(-code).name}) on this model. "
            f"{f'Its last words: {last} ' if last else ''}"
            "Leave out layers one by one to find which one it cannot take."
        )
    error = folder / "error.txt"
    message = error.read_text() if error.exists() else log
    if message.rstrip().endswith("Error:"):  # the converter said why on stderr alone
        message += " ".join(re.findall(r"error: (.*)", log))
    if "No space left" in message or "No space left" in log:
        return ConversionError(
            f"The disk is full: the converter could not write in {folder.parent}. "
            "Free some space, or set TMPDIR to another folder."
        )
    # The converter names operators without an integer kernel as 'tfl.name' or 'tf.Name'; those
    # without one for int16 as 'NAME'.
    operators = sorted(
        {
            *re.findall(r"'?(?:tfl?|tf)\.([A-Za-z_0-9]+)'? op", message),
            *re.findall(r"not yet supported for op: '([A-Z_0-9]+)'", message),
        }
    )
    if operators and "same scale constraint" not in message and target.fully_integer:
        from_layers = sorted(
            {name for name in layers if re.search(rf"\b{re.escape(name)}\b", message)}
        )
        return NotFullyIntegerError(
            f"The converter has no {target.activations} kernel for: {', '.join(operators)}"
            f"{', from layer ' + ', '.join(map(repr, from_layers)) if from_layers else ''}. "
            "Replace the layer by one that has (see docs/conversion.md)."
        )
    text = " ".join(message.split())
    return ConversionError(f"TensorFlow Lite's converter failed: {text[:600]}")
