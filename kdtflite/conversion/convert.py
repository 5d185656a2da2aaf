"""convert: turns a Keras model and representative data into a proven .tflite file."""

from __future__ import annotations

import json
import keyword
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtflite.arguments import check_arguments
from kdtflite.conversion import converter_process
from kdtflite.conversion.failures import explain_failure
from kdtflite.conversion.four_bits import require_quantizer
from kdtflite.conversion.inspection import find_layer
from kdtflite.conversion.narrowing import narrow_weights
from kdtflite.conversion.target_proof import prove_target
from kdtflite.conversion.targets import Target, get_target
from kdtflite.conversion.unlike_columns import find_unlike_columns
from kdtflite.data.representative import (
    DEFAULT_SAMPLES,
    InputSpec,
    RepresentativeData,
    take_samples,
)
from kdtflite.errors import (
    ConfigurationError,
    ConversionError,
    KdtfliteError,
    ModelFileError,
    to_line,
)
from kdtflite.leftovers import make_temporary_folder
from kdtflite.lite.metadata_writing import Normalization, add_metadata, check_metadata
from kdtflite.lite.model import LiteModel
from kdtflite.lite.packing import check_names
from kdtflite.lite.packing import pack as pack_file
from kdtflite.models.as_graph import as_graph
from kdtflite.models.as_tf_keras import as_tf_keras
from kdtflite.models.layer_names import strip_prefix
from kdtflite.models.trust.saved_models import check_saved_model
from kdtflite.progress import say

__all__ = ["convert"]

_LISTED = 8


@check_arguments
def convert(
    model: Any,
    representative_data: Any = None,
    target: str = "int8",
    *,
    io_dtype: str | None = None,
    input_range: tuple[float, float] | None = None,
    samples: int = DEFAULT_SAMPLES,
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    normalization: Normalization | Mapping[str, Normalization] | None = None,
    description: str | None = None,
    author: str | None = None,
    license: str | None = None,
    pack: bool = True,
    names: str = "all",
    progress: bool = True,
    unsafe: bool = False,
) -> LiteModel:
    """Converts a model and returns the file only if it is what the target promises.

    The converter runs in its own process, so that a crash becomes an error instead of the end of
    the notebook. That process waits for a minute for the next conversion, which it begins at once.

    Args:
        model: A model, float or quantization-aware, as `kdtflite.models.as_graph` takes it:
            tf_keras, Keras 3, a Distiller (its student), or the path of a .keras or .h5 file;
            or the path of any SavedModel folder. LSTM, GRU, SimpleRNN, and RNN around one of their
            cells, are unrolled, for which sequences need a fixed length.
        representative_data: Samples that calibrate the activations, as
            `kdtflite.data.take_samples` takes them. Fully integer targets need them even if
            every range is trained; the other targets take none.
        target: "int8", "int8x4" or "int16x8" (all proven fully integer), "float16", "dynamic",
            "int4", "int4_blockwise" or "float32"; `kdtflite.conversion.TARGETS` says what each
            promises. "int8" and "int8x4" use the ranges that a quantization-aware model was
            trained with. For the others its fake quantization is removed first, and "int16x8" is
            calibrated with the representative data. "int8x4" stores weights that were trained
            with four bits as they are, and rounds all others.
        io_dtype: Dtype of the inputs and outputs: "int8" (the default) or "uint8" for targets
            "int8" and "int8x4". The other targets have one dtype each.
        input_range: Least and greatest input value in training; data scaled differently are
            refused. A quantization-aware model knows its own.
        samples: The most samples to calibrate with.
        labels: Name of each class, for the file's metadata. The file gets metadata in TensorFlow
            Lite's standard format (`add_metadata`) if this or one of the next four is given. Its
            arithmetic is the same.
        normalization: (mean, std): the model was trained on (pixel - mean) / std of pixels
            0..255, for the metadata.
        description: What the model does, for the metadata.
        author: Who made it, for the metadata.
        license: Its license, for the metadata.
        pack: Write equal parts of the file once, which takes about a fifth off a small file and
            changes no output (see `kdtflite.pack`).
        names: What a packed file keeps of the names of inner tensors: "all", "layers" or "none".
            Other tools tell tensors apart by these names; no kernel reads them.
        progress: Show a progress bar.
        unsafe: For the path of a file or folder: also load what runs code or reaches other files,
            as `load_model` does. Use this only for models that you trust.

    Returns:
        The file in memory. Nothing is written.

    Raises:
        NotFullyIntegerError: There is a float tensor, a Flex or custom operator, or a float input
            or output in a file that should be fully integer; names operator, tensor and layer.
        DataError: The representative data do not fit the model.
        ModelFileError: `model` is a path, and `load_model` or `check_saved_model` refuses it.
        ConversionError: A weight is NaN or infinite, the converter failed or died, or the file is
            not what its target promises (see `prove_target`).
        ConfigurationError: There is no such target, io_dtype or choice of names, a package that
            the target needs is missing, or the labels or the normalization do not fit the model.
        UnsupportedModelError: `model` is not a model that can be converted.

    Example:
        >>> import kdtflite, numpy as np, tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).random((100, 4), np.float32)
        >>> lite = kdtflite.convert(model, x, progress=False)
        >>> lite.inputs[0].dtype, lite.predict(x).shape
        ('int8', (100, 2))
    """
    if not _is_folder(model):  # a SavedModel need not be Keras' own
        model = as_tf_keras(model, unsafe=unsafe)
    check_metadata(labels=labels, normalization=normalization)
    check_names(names)
    if names != "all" and not pack:
        raise ConfigurationError(
            f"Expected pack=True with names={names!r}: only a packed file has other names. "
            "Received: pack=False."
        )
    about: dict[str, Any] = {
        "labels": labels,
        "normalization": normalization,
        "description": description,
        "author": author,
        "license": license,
    }
    about = {key: value for key, value in about.items() if value is not None}
    promised = get_target(target)
    io = promised.choose_io(io_dtype)
    if promised.weights == "int4" and not promised.fully_integer:
        require_quantizer(f"Target {target!r}")
    try:
        with make_temporary_folder("convert") as folder:
            converter_process.server.start()
            saved = _save_model(model, folder / "model", input_range, promised, unsafe)
            data = None
            if promised.fully_integer:
                data = take_samples(representative_data, saved.inputs, limit=samples)
            lite = _run_conversion(folder, saved, promised, io, data, progress)
            if promised.fully_integer and promised.weights == "int4":
                lite = _narrow_weights(lite, saved.layers)
            if data is not None and not _is_folder(model):
                graph = as_graph(model)
                outputs = _list_output_names(graph)
                for sentence in find_unlike_columns(graph, outputs, data.samples, lite):
                    say(sentence)
    except OSError as error:
        if isinstance(error, KdtfliteError):
            raise
        raise ConversionError(
            "The conversion could not write its temporary files in "
            f"{tempfile.tempdir or 'the folder for them'}: {error.strerror or error}. Free some "
            "space, or set TMPDIR to another folder."
        ) from error
    if about:
        lite = add_metadata(lite, name=saved.name, details={"target": target}, **about)
    if pack:
        lite = pack_file(lite, names)
    prove_target(lite, target, layers=saved.layers)
    return lite


@dataclass(frozen=True)
class _SavedModel:
    """A SavedModel on disk, its inputs by the user's names and by its signature's."""

    path: Path
    name: str
    inputs: list[InputSpec]
    arguments: list[str]
    layers: list[str]


def _run_conversion(
    folder: Path,
    saved: _SavedModel,
    target: Target,
    io: str,
    data: RepresentativeData | None,
    progress: bool,
) -> LiteModel:
    job = {
        "model": str(saved.path.resolve()),
        "target": target.name,
        "io_dtype": io,
        "inputs": saved.arguments,
    }
    (folder / "job.json").write_text(json.dumps(job))
    if data is not None:
        for i, spec in enumerate(saved.inputs):
            np.save(folder / f"samples_{i}.npy", data.samples[spec.name])
    samples = len(data) if data is not None else 0
    code, log = converter_process.run_converter(folder, samples=samples, progress=progress)
    if code != 0:
        raise explain_failure(folder, code, log, saved.layers, target)
    return LiteModel((folder / "model.tflite").read_bytes())


def _narrow_weights(lite: LiteModel, layers: list[str]) -> LiteModel:
    content, exact = narrow_weights(lite.content)
    rounded = [find_layer(name, layers) or name for name, is_exact in exact.items() if not is_exact]
    if rounded:
        say(
            f"{len(rounded)} of {len(exact)} weights were not trained with four bits and are "
            f"rounded to them: {', '.join(rounded[:_LISTED])}"
            f"{', ...' if len(rounded) > _LISTED else ''}. To lose less accuracy, train with "
            "quantize_aware(model, data, weight_bits=4)."
        )
    return LiteModel(content)


def _is_folder(model: Any) -> bool:
    return isinstance(model, str | os.PathLike) and os.path.isdir(model)


def _save_model(
    model: Any,
    folder: Path,
    input_range: tuple[float, float] | None,
    target: Target,
    unsafe: bool,
) -> _SavedModel:
    """Saves a model with a signature of its own input and output names."""
    if _is_folder(model):
        return _open_saved_model(Path(model), input_range, unsafe)
    import tensorflow as tf

    from kdtflite.models.finite import describe_first_non_finite
    from kdtflite.models.keras_internals import get_input_structure
    from kdtflite.quantization.rewriting import unroll_loops

    keras_model = as_graph(model)
    _require_finite(describe_first_non_finite(keras_model))
    trained = _find_trained_ranges(keras_model)
    if not target.keeps_trained_ranges:
        keras_model = _remove_fake_quantization(keras_model)
    output_names = _list_output_names(keras_model)
    keras_model = unroll_loops(keras_model)
    names = list(keras_model.input_names)
    inputs = [
        InputSpec(
            name, tuple(tensor.shape[1:]), tensor.dtype.name, input_range or trained.get(name)
        )
        for name, tensor in zip(names, keras_model.inputs, strict=True)
    ]
    arguments = _to_identifiers(names)
    structure = get_input_structure(keras_model)

    def serve(**given: Any) -> dict[str, Any]:
        flat = [given[argument] for argument in arguments]
        outputs = keras_model(tf.nest.pack_sequence_as(structure, flat), training=False)
        flat_outputs = tf.nest.flatten(outputs)
        return dict(zip(output_names, flat_outputs, strict=True))

    specs = {
        argument: tf.TensorSpec((None, *spec.shape), spec.dtype, name=argument)
        for argument, spec in zip(arguments, inputs, strict=True)
    }
    module = tf.Module()
    # The variables, not the model: each layer of a Keras model in the module would be traced and
    # saved too, which takes long, and fails if a layer cannot be called alone.
    module.held, module.serve = list(keras_model.variables), tf.function(serve, autograph=False)
    try:
        signature = module.serve.get_concrete_function(**specs)
        tf.saved_model.save(module, str(folder), signatures=signature)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ConversionError(
            f"The model {keras_model.name!r} cannot be saved as a graph: {to_line(error)[:400]}. "
            "A custom layer that works on Python values is the usual cause."
        ) from error
    layers = [layer.name for layer in _walk_layers(keras_model)]
    return _SavedModel(folder, keras_model.name, inputs, arguments, layers)


def _require_finite(found: str | None) -> None:
    """Raises ConversionError if a weight is not finite: the converter would crash, or not mind."""
    if found is not None:
        raise ConversionError(
            f"Expected finite weights to convert. Received: {found}. A training that diverged may "
            "have left it: train again with a lower learning rate, or load an earlier checkpoint."
        )


def _open_saved_model(
    path: Path, input_range: tuple[float, float] | None, unsafe: bool
) -> _SavedModel:
    if not (path / "saved_model.pb").is_file():
        raise ModelFileError(
            f"Expected a SavedModel folder at {path}. Received: a folder without saved_model.pb. "
            "Save the model with model.export(), or pass a .keras or .h5 file."
        )
    check_saved_model(path, unsafe=unsafe)
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
    for variable in signature.variables:
        if variable.dtype.is_floating and not np.isfinite(variable.numpy()).all():
            _require_finite(f"NaN or infinity in the variable {variable.name!r}")
    inputs = [
        InputSpec(name, tuple(spec.shape[1:]), spec.dtype.name, input_range)
        for name, spec in signature.structured_input_signature[1].items()
    ]
    return _SavedModel(path, path.resolve().name, inputs, [spec.name for spec in inputs], [])


def _find_trained_ranges(model: Any) -> dict[str, tuple[float, float]]:
    from kdtflite.quantization.ranges import read_input_ranges

    return read_input_ranges(model)


def _remove_fake_quantization(model: Any) -> Any:
    # Its ranges are for int8 activations: a float file would round for nothing, and int16's 65,536
    # codes would cover a range chosen for 256.
    from kdtflite.quantization.stripping import is_quantization_aware, strip

    return strip(model) if is_quantization_aware(model) else model


def _list_output_names(model: Any) -> list[str]:
    return _to_identifiers(strip_prefix(name) for name in model.output_names)


def _walk_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield getattr(layer, "layer", layer)
        if hasattr(layer, "layers"):
            yield from _walk_layers(layer)


def _to_identifiers(names: Iterable[str]) -> list[str]:
    """Returns `names` as distinct Python identifiers, which a signature demands."""
    taken: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name)
        if not plain.isidentifier() or keyword.iskeyword(plain):
            plain = f"x_{plain}"
        while plain in taken:
            plain += "_"
        taken.append(plain)
    return taken
