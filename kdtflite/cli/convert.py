"""`kdtflite convert`: a trained model becomes a proven .tflite file."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdtflite.cli.options import (
    AsJson,
    CalibrationData,
    DataPath,
    Force,
    KerasFile,
    Names,
    OutputFile,
    Unsafe,
    check_output,
    read_labels,
    show,
)
from kdtflite.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdtflite.cli.samples import ModelInput
    from kdtflite.lite.model import LiteModel

__all__ = ["EPILOG", "NAME", "command"]

NAME = "convert"
EPILOG = "Example: kdtflite convert model.keras --representative data.npz -o model.tflite"


def command(
    model: KerasFile,
    output: OutputFile,
    representative: CalibrationData = None,
    target: Annotated[
        str,
        typer.Option(
            help="int8, int8x4 or int16x8 (proven fully integer), float16, dynamic, int4, "
            "int4_blockwise or float32."
        ),
    ] = "int8",
    io: Annotated[
        str | None,
        typer.Option(
            metavar="int8|uint8",
            help="Dtype of the inputs and outputs of an int8 or int8x4 file.",
            show_default="int8",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="The largest number of samples to calibrate with.")
    ] = 500,
    data_path: DataPath = "auto",
    input_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="The range of the inputs that the model was trained on; images and bytes are "
            "scaled to it.",
            show_default="0 1, or 0 255 if the model begins by rescaling or normalizing bytes",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file with the name of each class, one per line, for the metadata.",
        ),
    ] = None,
    normalization: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="MEAN STD",
            help="The normalization that the model was trained with, for the metadata: (pixel - "
            "MEAN) / STD for pixels from 0 to 255. For inputs from 0 to 1 it is 0 255.",
        ),
    ] = None,
    description: Annotated[
        str | None, typer.Option(help="A description of the model, for the metadata.")
    ] = None,
    author: Annotated[
        str | None, typer.Option(help="The model's author, for the metadata.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="The model's license, for the metadata.")
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack/--no-pack", help="Write equal parts of the file once.")
    ] = True,
    names: Names = "all",
    force: Force = False,
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Converts a Keras model to a .tflite file and proves that it is what the target promises.

    For int8, int8x4 and int16x8, nothing is written if the file has a float tensor, a Flex or
    custom operator, or a float input or output: the error names the operator, the tensor and the
    layer.
    For other targets, nothing is written if the weights have another dtype than the target's.
    """
    from kdtflite.conversion.targets import get_target

    promised = get_target(target)
    promised.choose_io(io)
    from kdtflite.lite.packing import check_names

    check_names(names)
    check_output(output, force=force)
    class_names = None if labels is None else read_labels(labels)
    if not _is_plain_saved_model(model):
        from kdtflite.models.model_files import open_model_file

        # Refuses a file that is not a model before TensorFlow is imported.
        open_model_file(model, unsafe=unsafe)
    if representative is None and promised.fully_integer:
        raise ConfigurationError(
            f"Target {target!r} calibrates activations and needs samples. Pass --representative: "
            "an .npz file, an image folder or a named data set."
        )
    import kdtflite
    from kdtflite.runtime import quiet_tensorflow

    quiet_tensorflow()
    # Loaded on first use: reading an .npz file needs no TensorFlow, so that a bad one is refused
    # at once.
    load = functools.cache(lambda: _load(model, unsafe=unsafe))
    data = None
    if representative is not None:
        from kdtflite.cli.samples import read_samples

        data = read_samples(
            representative,
            lambda: _list_inputs(load(), unsafe=unsafe),
            part="train",
            data_path=data_path,
            input_range=input_range,
        ).x
    lite = kdtflite.convert(
        load(),
        data,
        target,
        io_dtype=io,
        input_range=input_range,
        samples=samples,
        labels=class_names,
        normalization=normalization,
        description=description,
        author=author,
        license=license,
        pack=pack,
        names=names,
        unsafe=unsafe,
    )
    lite.save(output, overwrite=force, option="--force")
    _print_result(lite, output, model, target=target, as_json=as_json)


def _load(path: Path, *, unsafe: bool) -> Any:
    if _is_plain_saved_model(path):
        return path
    import kdtflite

    return kdtflite.load_model(path, unsafe=unsafe)


def _is_plain_saved_model(path: Path) -> bool:
    """Says whether a folder holds functions only, no Keras model: the converter reads it itself."""
    return (path / "saved_model.pb").is_file() and not (path / "keras_metadata.pb").is_file()


def _list_inputs(model: Any, *, unsafe: bool) -> Mapping[str, ModelInput]:
    """Returns the inputs of a tf_keras model or of a SavedModel folder, by name."""
    from kdtflite.cli.samples import ModelInput

    if not isinstance(model, Path):
        from kdtflite.models.inspect import find_byte_scaling_layer

        scaling_layer = find_byte_scaling_layer(model)
        names = getattr(model, "input_names", None) or [tensor.name for tensor in model.inputs]
        return {
            name: ModelInput(
                tuple(tensor.shape[1:]),
                str(getattr(tensor.dtype, "name", "float32")),
                scaling_layer=scaling_layer,
            )
            for name, tensor in zip(names, model.inputs, strict=True)
        }
    from kdtflite.models.trust.saved_models import check_saved_model

    check_saved_model(model, unsafe=unsafe)
    import tensorflow as tf

    try:
        signature = tf.saved_model.load(str(model)).signatures["serving_default"]
    except (OSError, ValueError, RuntimeError, KeyError, tf.errors.OpError):
        return {}  # convert() says what is wrong with it
    return {
        name: ModelInput(tuple(spec.shape[1:]), spec.dtype.name)
        for name, spec in signature.structured_input_signature[1].items()
        if spec.shape.rank is not None
    }


def _print_result(
    lite: LiteModel, output: Path, model: Path, *, target: str, as_json: bool
) -> None:
    from kdtflite.conversion import prove_target
    from kdtflite.files import sha256

    proof = prove_target(lite, target)
    files = [model] if model.is_file() else [path for path in model.rglob("*") if path.is_file()]
    model_bytes = sum(path.stat().st_size for path in files)
    if as_json:
        result = {
            "output": str(output),
            "sha256": sha256(output),
            "bytes": len(lite.content),
            "model_bytes": model_bytes,
            "proof": proof.to_dict(),
        }
        show(json.dumps(result, indent=2))
        return
    show(proof.summary())
    for label, specs in (("Input", lite.inputs), ("Output", lite.outputs)):
        for spec in specs:
            scale = "" if spec.scale is None else f", scale {spec.scale:.9g}"
            zero = "" if spec.zero_point is None else f", zero point {spec.zero_point}"
            show(f"{label} {spec.name}: {spec.dtype} {list(spec.shape)}{scale}{zero}")
    show(f"{output}: {len(lite.content):,} bytes (the model: {model_bytes:,} bytes)")
