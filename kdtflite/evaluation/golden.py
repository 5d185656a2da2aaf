"""Golden vectors: what a phone must answer, bit by bit, written where the file was made."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, DataError, ModelFileError
from kdtflite.evaluation.golden_file import FORMAT, GoldenVectors, encode
from kdtflite.lite.model import LiteModel, as_lite_model
from kdtflite.lite.samples import fit_samples
from kdtflite.lite.tensors import TensorSpec, quantize

__all__ = ["golden_vectors"]

Array = NDArray[Any]

_DTYPES = ("int8", "uint8", "int16", "int32", "float32")
# Beside the file's own: scales whose halves float32 holds exactly, and that of a dead activation.
_QUANTIZERS = (
    ("int8", 1.0, 0),
    ("int8", 0.25, -128),
    ("uint8", 1.0, 128),
    ("int16", 1.0, 0),
    ("int8", 7.8e-9, 3),
)
_HALVES = 64
_RANDOM = 64


@check_arguments
def golden_vectors(
    lite: Any,
    data: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    samples: int = 128,
    input_range: tuple[float, float] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> GoldenVectors:
    """Runs a file on samples and records inputs and outputs, real values and codes.

    The outputs are those of LiteRT's built-in kernels, one sample per invoke: they are repeatable.
    XNNPACK's outputs, which may differ by a step, are recorded beside them.

    Args:
        lite: A LiteModel, the bytes of a `.tflite`, or its path.
        data: Samples, shape (samples, ...), as `LiteModel.predict` takes them; a dict by input
            name for several inputs. If there are more than `samples`, that many are taken, evenly
            spread, so that sorted classes all occur. None draws random samples, uniformly from
            each input's range.
        samples: How many samples; all of them where `data` has fewer.
        input_range: Least and greatest value to draw for inputs that are not quantized, since
            the file does not give their range; integers include both ends. By default 0 to 1.
        seed: Seed of the random samples and of the quantizer's random values.
        name: The file's name to record. By default that of the path, or "model.tflite".

    Returns:
        The vectors; `save` writes them.

    Raises:
        DataError: `data` does not fit the file's inputs, or the file's outputs are not finite.
        ModelFileError: The format does not support the dtype or batch size of an input or
            output, or LiteRT cannot run the file.
        ConfigurationError: `samples` is below 1, or `input_range` is not a range.

    Example:
        >>> import kdtflite
        >>> import tf_keras as keras
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> lite = kdtflite.convert(model, target="float32")
        >>> kdtflite.golden_vectors(lite, samples=3).samples
        3
    """
    if name is None and isinstance(lite, str | os.PathLike):
        name = Path(os.fsdecode(lite)).name
    lite = as_lite_model(lite)
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    if input_range is not None and not input_range[0] < input_range[1]:
        raise ConfigurationError(
            f"Expected input_range as (low, high) with low below high. Received: {input_range}."
        )
    _check_tensors(lite)
    rng = np.random.default_rng(seed)
    if data is None:
        chosen = {spec.name: _draw(spec, samples, input_range, rng) for spec in lite.inputs}
    else:
        chosen = {
            key: _choose_evenly(value, samples)
            for key, value in fit_samples(lite.inputs, data).items()
        }
    inputs = [_prepare_input(spec, chosen[spec.name]) for spec in lite.inputs]
    codes = {spec.name: given for spec, (_, given) in zip(lite.inputs, inputs, strict=True)}
    exact, fast = (_run(lite, codes, xnnpack=xnnpack) for xnnpack in (False, True))
    kernels = {
        "exact": "built-in",
        "xnnpack_steps": _find_largest_steps(lite.outputs, exact, fast),
        "xnnpack_difference": _find_largest_difference(lite.outputs, exact, fast),
        "litert": metadata.version("ai-edge-litert"),
        "architecture": platform.machine(),
    }
    count = len(next(iter(chosen.values())))
    return GoldenVectors(
        {
            "format": FORMAT,
            "model": {
                "file": name or "model.tflite",
                "sha256": hashlib.sha256(lite.content).hexdigest(),
                "bytes": len(lite.content),
            },
            "kernels": kernels,
            "inputs": [spec.to_dict() for spec in lite.inputs],
            "outputs": [spec.to_dict() for spec in lite.outputs],
            "samples": [
                {
                    "inputs": [
                        {"float": encode(real[row]), "quantized": encode(given[row])}
                        for real, given in inputs
                    ],
                    "outputs": [
                        {
                            "quantized": encode(exact[spec.name][row]),
                            "dequantized": encode(_to_real(spec, exact[spec.name][row])),
                            "xnnpack": encode(fast[spec.name][row]),
                        }
                        for spec in lite.outputs
                    ],
                }
                for row in range(count)
            ],
            "quantizer": _make_quantizer_cases(lite, rng),
        }
    )


def _check_tensors(lite: LiteModel) -> None:
    for role, specs in (("input", lite.inputs), ("output", lite.outputs)):
        for spec in specs:
            if spec.dtype not in _DTYPES:
                raise ModelFileError(
                    f"Golden vectors hold {', '.join(_DTYPES)}. Received: {role} {spec.name} of "
                    f"dtype {spec.dtype}."
                )
            if role == "input" and spec.shape[:1] != (1,):
                raise ModelFileError(
                    f"Golden vectors have one sample per invoke. Expected inputs of shape (1, "
                    f"...). Received: input {spec.name} of shape {spec.shape}. Convert the model "
                    "with a batch of 1."
                )


def _draw(
    spec: TensorSpec, count: int, given: tuple[float, float] | None, rng: np.random.Generator
) -> Array:
    shape = (count, *spec.shape[1:])
    low, high = spec.range or given or (0.0, 1.0)
    if spec.scale is None and spec.dtype != "float32":
        return rng.integers(int(low), int(high), shape, spec.dtype, endpoint=True)
    return rng.uniform(low, high, shape).astype(np.float32)


def _choose_evenly(value: Array, count: int) -> Array:
    if len(value) <= count:
        return value
    return value[np.linspace(0, len(value) - 1, count).astype(int)]


def _prepare_input(spec: TensorSpec, value: Array) -> tuple[Array, Array]:
    """Returns samples as real values (float32) and as the file takes them."""
    if value.shape[1:] != spec.shape[1:]:
        raise DataError(
            f"Expected samples of shape {spec.shape[1:]}, as stored in the file, for input "
            f"{spec.name}. Received: {value.shape[1:]}."
        )
    real = _to_real(spec, value) if str(value.dtype) == spec.dtype else value.astype(np.float32)
    codes = spec.quantize(value if str(value.dtype) == spec.dtype else real)
    if not np.array_equal(spec.quantize(real), codes):
        raise DataError(
            f"Expected whole numbers up to 2^24 for input {spec.name}, which float32 holds. "
            f"Received: up to {np.abs(value).max()}."
        )
    return real, codes


def _to_real(spec: TensorSpec, codes: Array) -> Array:
    return spec.dequantize(codes).astype(np.float32)


def _run(lite: LiteModel, codes: dict[str, Array], *, xnnpack: bool) -> dict[str, Array]:
    given = lite.predict(codes, dequantize=False, workers=1, batch_size=1, xnnpack=xnnpack)
    outputs = given if isinstance(given, dict) else {lite.outputs[0].name: given}
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"Expected finite outputs. Received: NaN or infinity from output {name} of the "
                "file. Nothing can be compared with these; check the model's weights."
            )
    return outputs


def _find_largest_steps(
    specs: Sequence[TensorSpec], one: dict[str, Array], other: dict[str, Array]
) -> int | None:
    steps = [
        int(np.abs(one[spec.name].astype(np.int64) - other[spec.name].astype(np.int64)).max())
        for spec in specs
        if spec.dtype != "float32"
    ]
    return max(steps, default=None)


def _find_largest_difference(
    specs: Sequence[TensorSpec], one: dict[str, Array], other: dict[str, Array]
) -> float:
    return max(
        float(np.abs(_to_real(spec, one[spec.name]) - _to_real(spec, other[spec.name])).max())
        for spec in specs
    )


def _make_quantizer_cases(lite: LiteModel, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns values that a quantizer gets wrong first, with their codes."""
    own = [
        (spec.dtype, spec.scale, spec.zero_point)
        for spec in (*lite.inputs, *lite.outputs)
        if spec.scale is not None and spec.zero_point is not None and spec.dtype != "int32"
    ]
    entries = []
    for dtype, wanted, zero_point in dict.fromkeys((*own, *_QUANTIZERS)):
        scale = float(np.float32(wanted))
        values = _make_hard_values(dtype, scale, zero_point, rng)
        entries.append(
            {
                "dtype": dtype,
                "scale": scale,
                "zero_point": zero_point,
                "count": len(values),
                "values": encode(values),
                "codes": encode(quantize(values, scale, zero_point, dtype)),
            }
        )
    return entries


def _make_hard_values(
    dtype: str, scale: float, zero_point: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Returns halves and their neighbors, ends, zeros, denormals, infinities, NaN and others."""
    codes = np.iinfo(dtype)
    low, high = codes.min - zero_point, codes.max - zero_point
    # Near both ends, near zero, and some in between.
    steps = np.concatenate(
        [
            np.arange(low - 2, low + 3),
            np.arange(-4, 5),
            np.arange(high - 2, high + 3),
            rng.integers(low, high, _HALVES),
        ]
    )
    halves = ((steps + 0.5) * scale).astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    limits = np.finfo(np.float32)
    extremes = [np.nan, np.inf, limits.max, limits.tiny, limits.smallest_subnormal, 0.0]
    # Adding 0.5 in float32 rounds this one up to 1, and these beyond 2^23 to an even number.
    traps = np.multiply([0.49999997, 8388609.0, 16777217.0], scale)
    edges = np.concatenate([extremes, traps])
    return np.concatenate(
        [
            halves,
            np.nextafter(halves, up),
            np.nextafter(halves, down),
            (steps * scale).astype(np.float32),
            edges,
            -edges,
            rng.uniform((low - 9) * scale, (high + 9) * scale, _RANDOM),
        ],
        dtype=np.float32,
        casting="same_kind",
    )
