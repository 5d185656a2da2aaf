"""Golden vectors: what a phone must answer, bit by bit, written where the file was made."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.errors import ConfigurationError, DataError, ModelFileError
from kdtflite.files import write_bytes
from kdtflite.input_checks import fitted
from kdtflite.litemodel import LiteModel, TensorSpec, quantize

__all__ = ["GoldenVectors", "golden_vectors"]

Array = NDArray[Any]

FORMAT = "kdtflite-golden-1"
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


@dataclass(frozen=True)
class GoldenVectors:
    """Samples of a file with its answers to them, to be repeated on another machine.

    Attributes:
        content: Everything as plain values, in the layout of `golden.json`
            (docs/android.md): the file's name and digest, its inputs and outputs, the samples as
            base64 of little-endian arrays, and values for the quantizer alone.
    """

    content: dict[str, Any]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.content["samples"])

    @property
    def xnnpack_steps(self) -> int | None:
        """Largest difference of XNNPACK's outputs from the built-in kernels', in codes.

        None where every output is float; `xnnpack_difference` says it in real values.
        """
        steps: int | None = self.content["kernels"]["xnnpack_steps"]
        return steps

    @property
    def xnnpack_difference(self) -> float:
        """Largest difference of XNNPACK's outputs from the built-in kernels', in real values."""
        return float(self.content["kernels"]["xnnpack_difference"])

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        return self.content

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        option: str = "overwrite=True",
    ) -> Path:
        """Writes them as JSON, whole or not at all, and returns the path."""
        text = json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        return write_bytes(path, text.encode(), overwrite=overwrite, option=option)

    def __str__(self) -> str:
        if self.xnnpack_steps is None:
            apart = f"{self.xnnpack_difference:.3g}"
        else:
            apart = f"{self.xnnpack_steps} step{'' if self.xnnpack_steps == 1 else 's'}"
        tested = sum(entry["count"] for entry in self.content["quantizer"])
        return (
            f"{self.samples} samples of {self.content['model']['file']} with the outputs of "
            f"LiteRT's built-in kernels; XNNPACK's differ by {apart} at most. "
            f"{tested:,} values for the quantizer alone."
        )


def golden_vectors(
    lite: LiteModel | str | os.PathLike[str],
    x: ArrayLike | Mapping[str, ArrayLike] | None = None,
    *,
    samples: int = 128,
    input_range: tuple[float, float] | None = None,
    seed: int = 0,
    name: str | None = None,
) -> GoldenVectors:
    """Runs a file on samples and records inputs and outputs, real values and codes.

    The outputs are those of LiteRT's built-in kernels, one sample an invoke, which are repeatable;
    XNNPACK's, which may differ by a step, stand beside them.

    Args:
        lite: The LiteModel, or the path of a `.tflite`.
        x: Samples, shape (samples, ...), as `LiteModel.predict` takes them; a dict by input name
            for several inputs. Of more than `samples`, as many are taken, evenly spread, so that
            sorted classes are all there. None draws them at random, evenly within each input's
            range.
        samples: How many samples; all where `x` has fewer.
        input_range: Least and greatest value drawn for inputs that are not quantized, whose range
            the file does not say; integers are drawn with both ends. By default 0..1.
        seed: Of the random samples and of the quantizer's random values.
        name: The file's name as recorded. By default that of the path, or "model.tflite".

    Returns:
        The vectors; `save` writes them.

    Raises:
        DataError: `x` does not fit the file's inputs, or the file's answers are not finite.
        ModelFileError: An input or output is of a dtype or batch that the format does not have,
            or LiteRT cannot run the file.
        ConfigurationError: `samples` below 1, or an `input_range` that is none.
    """
    if samples < 1:
        raise ConfigurationError(f"Expected samples from 1 up. Received: {samples}.")
    if input_range is not None and not input_range[0] < input_range[1]:
        raise ConfigurationError(
            f"Expected input_range as (low, high) with low below high. Received: {input_range}."
        )
    if not isinstance(lite, LiteModel):
        name = name or Path(lite).name
        lite = LiteModel.load(lite)
    _check_ends(lite)
    rng = np.random.default_rng(seed)
    if x is None:
        chosen = {spec.name: _drawn(spec, samples, input_range, rng) for spec in lite.inputs}
    else:
        chosen = {key: _spread(value, samples) for key, value in fitted(lite.inputs, x).items()}
    inputs = [_input(spec, chosen[spec.name]) for spec in lite.inputs]
    codes = {spec.name: given for spec, (_, given) in zip(lite.inputs, inputs, strict=True)}
    exact, fast = (_outputs(lite, codes, xnnpack=xnnpack) for xnnpack in (False, True))
    kernels = {
        "exact": "built-in",
        "xnnpack_steps": _largest_steps(lite.outputs, exact, fast),
        "xnnpack_difference": _largest_difference(lite.outputs, exact, fast),
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
                        {"float": _base64(real[row]), "quantized": _base64(given[row])}
                        for real, given in inputs
                    ],
                    "outputs": [
                        {
                            "quantized": _base64(exact[spec.name][row]),
                            "dequantized": _base64(_real(spec, exact[spec.name][row])),
                            "xnnpack": _base64(fast[spec.name][row]),
                        }
                        for spec in lite.outputs
                    ],
                }
                for row in range(count)
            ],
            "quantizer": _quantizer(lite, rng),
        }
    )


def _check_ends(lite: LiteModel) -> None:
    for role, specs in (("input", lite.inputs), ("output", lite.outputs)):
        for spec in specs:
            if spec.dtype not in _DTYPES:
                raise ModelFileError(
                    f"Golden vectors hold {', '.join(_DTYPES)}. Received: {role} {spec.name} of "
                    f"dtype {spec.dtype}."
                )
            if role == "input" and spec.shape[:1] != (1,):
                raise ModelFileError(
                    f"Golden vectors are of one sample an invoke. Expected inputs of shape (1, "
                    f"...). Received: input {spec.name} of shape {spec.shape}. Convert the model "
                    "with a batch of 1."
                )


def _drawn(
    spec: TensorSpec, count: int, given: tuple[float, float] | None, rng: np.random.Generator
) -> Array:
    shape = (count, *spec.shape[1:])
    low, high = spec.range or given or (0.0, 1.0)
    if spec.scale is None and spec.dtype != "float32":
        return rng.integers(int(low), int(high), shape, spec.dtype, endpoint=True)
    return rng.uniform(low, high, shape).astype(np.float32)


def _spread(value: Array, count: int) -> Array:
    if len(value) <= count:
        return value
    return value[np.linspace(0, len(value) - 1, count).astype(int)]


def _input(spec: TensorSpec, value: Array) -> tuple[Array, Array]:
    """Returns samples as real values (float32) and as the file takes them."""
    if value.shape[1:] != spec.shape[1:]:
        raise DataError(
            f"Expected samples of shape {spec.shape[1:]}, as stored in the file, for input "
            f"{spec.name}. Received: {value.shape[1:]}."
        )
    real = _real(spec, value) if str(value.dtype) == spec.dtype else value.astype(np.float32)
    codes = spec.quantize(value if str(value.dtype) == spec.dtype else real)
    if not np.array_equal(spec.quantize(real), codes):
        raise DataError(
            f"Expected whole numbers up to 2^24 for input {spec.name}, which float32 holds. "
            f"Received: up to {np.abs(value).max()}."
        )
    return real, codes


def _real(spec: TensorSpec, codes: Array) -> Array:
    return spec.dequantize(codes).astype(np.float32)


def _outputs(lite: LiteModel, codes: dict[str, Array], *, xnnpack: bool) -> dict[str, Array]:
    given = lite.predict(codes, dequantize=False, workers=1, batch_size=1, xnnpack=xnnpack)
    outputs = given if isinstance(given, dict) else {lite.outputs[0].name: given}
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"Expected finite outputs. Received: NaN or infinity from output {name} of the "
                "file. Nothing can be compared with these; check the model's weights."
            )
    return outputs


def _largest_steps(
    specs: Sequence[TensorSpec], one: dict[str, Array], other: dict[str, Array]
) -> int | None:
    steps = [
        int(np.abs(one[spec.name].astype(np.int64) - other[spec.name].astype(np.int64)).max())
        for spec in specs
        if spec.dtype != "float32"
    ]
    return max(steps, default=None)


def _largest_difference(
    specs: Sequence[TensorSpec], one: dict[str, Array], other: dict[str, Array]
) -> float:
    return max(
        float(np.abs(_real(spec, one[spec.name]) - _real(spec, other[spec.name])).max())
        for spec in specs
    )


def _quantizer(lite: LiteModel, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns values that a quantizer gets wrong first, with their codes."""
    own = [
        (spec.dtype, spec.scale, spec.zero_point)
        for spec in (*lite.inputs, *lite.outputs)
        if spec.scale is not None and spec.zero_point is not None and spec.dtype != "int32"
    ]
    entries = []
    for dtype, wanted, zero_point in dict.fromkeys((*own, *_QUANTIZERS)):
        scale = float(np.float32(wanted))
        values = _hard_values(dtype, scale, zero_point, rng)
        entries.append(
            {
                "dtype": dtype,
                "scale": scale,
                "zero_point": zero_point,
                "count": len(values),
                "values": _base64(values),
                "codes": _base64(quantize(values, scale, zero_point, dtype)),
            }
        )
    return entries


def _hard_values(
    dtype: str, scale: float, zero_point: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Returns halves and their neighbours, ends, zeros, denormals, infinities, NaN and others."""
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


def _base64(values: Array) -> str:
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")
