"""`kdtflite convert`: a trained model becomes a proven .tflite file."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kdtflite.errors import ConfigurationError

__all__ = ["EPILOG", "NAME", "command"]

NAME = "convert"
EPILOG = "Example: kdtflite convert model.keras --representative data.npz -o model.tflite"

# Layers before the first that computes: what they give lies between the values they got.
_KEEP_VALUES = frozenset(
    {"InputLayer", "Reshape", "Permute", "Resizing", "CenterCrop", "Cropping2D", "ZeroPadding2D"}
)
_LEAST_SCALE_OF_REALS = 0.1
_MOST_VARIANCE_OF_UNIT = 0.25  # no values from 0 to 1 have more


def command(
    model: Annotated[
        Path, typer.Argument(help="A .keras or .h5 file, or a SavedModel folder.", metavar="MODEL")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .tflite file to write.")],
    representative: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Samples that calibrate the activations: an .npz file, an image folder of class "
            "sub-folders, or a named data set. int8 and int16x8 need them.",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="int8 or int16x8 (proven fully integer), float16, dynamic, int4, int4_blockwise "
            "or float32."
        ),
    ] = "int8",
    io: Annotated[
        str | None,
        typer.Option(
            metavar="int8|uint8", help="Dtype of an int8 file's inputs and outputs. [int8]"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="The most samples to calibrate with.")] = 500,
    data_path: Annotated[
        str, typer.Option(metavar="PATH|auto", help="Where a named data set lies.")
    ] = "auto",
    input_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="What the model was trained on; images and bytes are scaled to it. [0 1; 0 255 "
            "if the model begins with Rescaling or Normalization of bytes]",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file with the name of each class, a line each, for the file's metadata.",
        ),
    ] = None,
    normalisation: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="MEAN STD",
            help="What the model was trained on, for the metadata: (pixel - MEAN) / STD of pixels "
            "from 0 to 255. For inputs from 0 to 1 it is 0 255.",
        ),
    ] = None,
    description: Annotated[
        str | None, typer.Option(help="What the model does, for the metadata.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="Who made it, for the metadata.")] = None,
    license: Annotated[str | None, typer.Option(help="Its licence, for the metadata.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Load a model that carries code (Lambda) and run that code."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Converts a Keras model to a .tflite file, and proves it to be what the target promises.

    Where int8 or int16x8 is promised, a file with a float tensor, a Flex or custom operator, or
    float inputs or outputs is not written: the message names the operator, the tensor and the
    layer. So it is with weights of another dtype than the other targets promise.
    """
    from kdtflite.conversion.targets import get_target
    from kdtflite.files import refuse_existing

    promised = get_target(target)
    promised.choose_io(io)
    refuse_existing(output, overwrite=force, option="--force")
    if output.is_dir():
        raise ConfigurationError(
            f"Expected --output to name a file. Received: the folder {output}."
        )
    class_names = None if labels is None else _read_labels(labels)
    if not _is_plain_saved_model(model):
        from kdtflite.models.model_files import open_model_file

        open_model_file(model)  # refuses what is no model before TensorFlow is imported
    if representative is None and promised.fully_integer:
        raise ConfigurationError(
            f"Target {target!r} calibrates activations and needs samples. Pass --representative: "
            "an .npz file, an image folder or a named data set."
        )
    import kdtflite
    from kdtflite.runtime import quiet_tensorflow

    quiet_tensorflow()
    # Loaded when first asked for: reading an .npz takes no TensorFlow, and a bad one is refused
    # at once.
    loaded = functools.cache(lambda: _load(model, unsafe=unsafe))
    data = None
    if representative is not None:
        from kdtflite.cli.samples import read_samples

        data = read_samples(
            representative,
            lambda: _expected(loaded()),
            part="train",
            data_path=data_path,
            input_range=input_range,
        ).x
    lite = kdtflite.convert(
        loaded(),
        data,
        target,
        io_dtype=io,
        input_range=input_range,
        samples=samples,
        labels=class_names,
        normalisation=normalisation,
        description=description,
        author=author,
        license=license,
    )
    lite.save(output, overwrite=force, option="--force")
    _print(lite, output, model, target=target, as_json=as_json)


def _read_labels(path: Path) -> list[str]:
    from kdtflite.conversion.metadata import check_metadata

    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"Expected --labels to name a text file in UTF-8, a class a line. Received: {path}, "
            "which is none."
        ) from error
    labels = [line.strip() for line in lines]
    try:
        check_metadata(labels=labels)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return labels


def _load(path: Path, *, unsafe: bool) -> Any:
    if _is_plain_saved_model(path):
        return path
    import kdtflite

    return kdtflite.load_model(path, unsafe=unsafe)


def _is_plain_saved_model(path: Path) -> bool:
    """Says whether there is no Keras model inside, only functions: the converter takes it so."""
    return (path / "saved_model.pb").is_file() and not (path / "keras_metadata.pb").is_file()


def _expected(model: Any) -> Any:
    """Returns what the model takes, by input name, as far as it says."""
    from kdtflite.cli.samples import Expected

    if not isinstance(model, Path):
        scales = _scales_bytes(model)
        return {
            name: Expected(
                tuple(tensor.shape[1:]),
                str(getattr(tensor.dtype, "name", "float32")),
                scales=scales,
            )
            for name, tensor in zip(
                getattr(model, "input_names", None) or [i.name for i in model.inputs],
                model.inputs,
                strict=True,
            )
        }
    import tensorflow as tf

    try:
        signature = tf.saved_model.load(str(model)).signatures["serving_default"]
    except (OSError, ValueError, RuntimeError, KeyError, tf.errors.OpError):
        return {}  # convert() says what is wrong with it
    named = signature.structured_input_signature[1]
    return {
        name: Expected(tuple(spec.shape[1:]), spec.dtype.name)
        for name, spec in named.items()
        if spec.shape.rank is not None
    }


def _scales_bytes(model: Any) -> str | None:
    """Returns the name of the first layer that computes, if it scales bytes (0..255)."""
    import numpy as np

    if len(model.inputs) != 1:
        return None
    for layer in model._flatten_layers(include_self=False):
        kind = type(layer).__name__
        if hasattr(layer, "layers") or kind in _KEEP_VALUES or kind.startswith("Random"):
            continue
        if kind == "Rescaling":
            # 1/255 and 1/127.5 are for bytes; 2 (to -1..1) is for values from 0 to 1.
            return str(layer.name) if np.max(np.abs(layer.scale)) < _LEAST_SCALE_OF_REALS else None
        if kind == "Normalization":
            kept = layer.get_weights()  # mean, variance, count; nothing if they were given
            variance = np.max(kept[1] if kept else layer.input_variance)
            return str(layer.name) if variance > _MOST_VARIANCE_OF_UNIT else None
        return None
    return None


def _print(lite: Any, output: Path, model: Path, *, target: str, as_json: bool) -> None:
    from kdtflite.conversion import prove_target
    from kdtflite.files import sha256

    proof = prove_target(lite, target)
    before = _size(model)
    if as_json:
        result = {
            "output": str(output),
            "sha256": sha256(output),
            "bytes": len(lite.content),
            "model_bytes": before,
            "proof": proof.to_dict(),
        }
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo(str(proof))
    for label, specs in (("Input", lite.inputs), ("Output", lite.outputs)):
        for spec in specs:
            scale = "" if spec.scale is None else f", scale {spec.scale:.9g}"
            zero = "" if spec.zero_point is None else f", zero point {spec.zero_point}"
            typer.echo(f"{label} {spec.name}: {spec.dtype} {list(spec.shape)}{scale}{zero}")
    typer.echo(f"{output}: {len(lite.content):,} bytes (the model given: {before:,} bytes)")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
