"""A .tflite file: its bytes, its tensors, its arithmetic, and what it predicts."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.errors import ConfigurationError, ModelFileError, one_line
from kdtflite.files import write_bytes
from kdtflite.flatbuffer import FileTensor, Operator, read_graph
from kdtflite.input_checks import fitted, scaling_problems
from kdtflite.interpreters import Runner, allocated, open_interpreter
from kdtflite.metadata import Metadata, read_metadata
from kdtflite.progress import say

__all__ = ["LiteModel", "TensorSpec", "dequantize", "quantize"]

Array = NDArray[Any]


def quantize(x: ArrayLike, scale: float, zero_point: int, dtype: str) -> Array:
    """Turns real values into integer codes: q = clamp(round(x / scale) + zero_point).

    Rounds half away from zero and saturates, in float32, as LiteRT's reference QUANTIZE kernel
    does; its optimized ones differ from it in exact halves, which they round to even on x86. NaN,
    for which no code is right, becomes the zero point, the code of 0.0.

    Args:
        x: Real values of any shape, taken as float32.
        scale: Step between two codes; positive.
        zero_point: The code of 0.0.
        dtype: "int8", "uint8" or "int16".

    Returns:
        Codes of `dtype`, in the shape of `x`.
    """
    info = np.iinfo(dtype)
    # A tiny scale overflows to infinity, which saturates as it should.
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.asarray(x, np.float32) / np.float32(scale)
        whole = np.trunc(steps)
        # Not floor(v + 0.5): in float32 0.49999997 + 0.5 is 1.0. v - trunc(v) is exact.
        away = np.copysign(np.abs(steps - whole) >= np.float32(0.5), steps)
        rounded = np.nan_to_num(whole + away, nan=0.0, posinf=2.0**24, neginf=-(2.0**24))
    # Beyond 2²⁴ float32 skips integers, but every code of 16 bits has saturated long before.
    codes = np.clip(rounded, -(2.0**24), 2.0**24).astype(np.int32) + np.int32(zero_point)
    return np.clip(codes, info.min, info.max).astype(dtype)


def dequantize(q: Array, scale: float, zero_point: int) -> NDArray[np.float32]:
    """Turns integer codes into real values: x = (q - zero_point) * scale, in float32."""
    return (q.astype(np.int32) - np.int32(zero_point)).astype(np.float32) * np.float32(scale)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a file.

    Attributes:
        name: Name in the file's signature, which for kdtflite's files is the Keras layer's.
        index: Tensor index for the interpreter.
        shape: Shape as stored; the batch is usually 1.
        shape_signature: The same with -1 where the size may be changed.
        dtype: "int8", "uint8", "int16", "float32", "int32", ...
        scale: Step between two codes, or None where the tensor is not quantized.
        zero_point: Code of 0.0, or None where the tensor is not quantized.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None

    @property
    def range(self) -> tuple[float, float] | None:
        """Least and greatest real value that the codes stand for; None where not quantized."""
        if self.scale is None or self.zero_point is None:
            return None
        codes = np.iinfo(self.dtype)
        return (codes.min - self.zero_point) * self.scale, (
            codes.max - self.zero_point
        ) * self.scale

    def quantize(self, x: ArrayLike) -> Array:
        """Returns `x` as this tensor takes it.

        An array of the tensor's own integer dtype holds codes and passes unchanged. Anything
        else holds real values: an image of uint8 pixels 0..255 for an int8 input is quantized.
        """
        x = np.asarray(x)
        if str(x.dtype) == self.dtype:
            return x
        if self.scale is None or self.zero_point is None:
            return x.astype(self.dtype)
        return quantize(x, self.scale, self.zero_point, self.dtype)

    def dequantize(self, q: Array) -> Array:
        """Returns codes as real values, float32; a tensor that is not quantized as it is."""
        if self.scale is None or self.zero_point is None:
            return q
        return dequantize(q, self.scale, self.zero_point)

    def to_dict(self) -> dict[str, Any]:
        """Returns the specification as plain values for JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "scale": self.scale,
            "zero_point": self.zero_point,
        }


@dataclass(frozen=True, repr=False)
class LiteModel:
    """The bytes of a .tflite file and everything one asks of them.

    Args:
        content: The file, whole.

    Raises:
        ModelFileError: `content` is no .tflite file, or a damaged one.
    """

    content: bytes

    def __post_init__(self) -> None:
        _ = self.inputs  # reads and checks the file now, rather than at the first use

    def __repr__(self) -> str:
        ends = " -> ".join(
            ", ".join(f"{spec.name}: {spec.dtype} {spec.shape}" for spec in specs)
            for specs in (self.inputs, self.outputs)
        )
        return f"LiteModel({len(self.content):,} bytes, {ends})"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LiteModel:
        """Reads a .tflite file.

        Raises:
            ModelFileError: The file is missing, empty, damaged or of another format.
        """
        path = Path(path)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "missing"
            raise ModelFileError(f"Expected a .tflite file at {path}; it is {kind}.")
        try:
            return cls(path.read_bytes())
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        option: str = "overwrite=True",
    ) -> Path:
        """Writes the file, whole or not at all, and returns its path."""
        return write_bytes(path, self.content, overwrite=overwrite, option=option)

    @functools.cached_property
    def _graph(self) -> tuple[tuple[FileTensor, ...], tuple[Operator, ...]]:
        return read_graph(self.content)

    @property
    def tensors(self) -> tuple[FileTensor, ...]:
        """Every tensor of every subgraph, constants included."""
        return self._graph[0]

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Every operator of every subgraph, in execution order."""
        return self._graph[1]

    @property
    def metadata(self) -> Metadata | None:
        """Labels, normalisation, description and more; None without them, or if damaged.

        That they are damaged is said once, in one sentence, and stands in `metadata_problem`.
        """
        metadata, problem = self._metadata
        if problem is not None and problem not in self._said:
            self._said.add(problem)
            say(problem)
        return metadata

    @property
    def metadata_problem(self) -> str | None:
        """What is wrong with the metadata, in one sentence; None where they are sound or none."""
        return self._metadata[1]

    @functools.cached_property
    def _metadata(self) -> tuple[Metadata | None, str | None]:
        try:
            return read_metadata(self.content), None
        except ModelFileError as error:
            return None, str(error)

    @functools.cached_property
    def _ends(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        _ = self._graph  # Python finds a damaged file before native code walks into it
        interpreter = open_interpreter(self.content, xnnpack=False)
        try:
            signatures = interpreter._get_full_signature_list()
            first: dict[str, dict[str, int]] = next(iter(signatures.values()), {})
            return (
                _specs(interpreter.get_input_details(), first.get("inputs", {})),
                _specs(interpreter.get_output_details(), first.get("outputs", {})),
            )
        except (ValueError, TypeError, KeyError) as error:  # a name that is no text, a type unknown
            raise ModelFileError(
                f"The inputs and outputs of this file cannot be read: {one_line(error)}. It is "
                "damaged; copy it again or convert the model again."
            ) from error

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the file takes, in the file's order, which need not be the Keras model's."""
        return self._ends[0]

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the file gives, in the file's order."""
        return self._ends[1]

    def interpreter(
        self, *, threads: int = 1, xnnpack: bool = True, keep_tensors: bool = False
    ) -> Any:
        """Returns a new LiteRT interpreter with its tensors allocated.

        Args:
            threads: Threads inside one invoke.
            xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.
            keep_tensors: Keep the values of every tensor for `get_tensor`, not of outputs alone.

        Raises:
            ModelFileError: LiteRT or the delegate refuses the file.
        """
        interpreter = open_interpreter(
            self.content, threads=threads, xnnpack=xnnpack, keep_tensors=keep_tensors
        )
        return allocated(interpreter, xnnpack=xnnpack)

    def predict(
        self,
        x: ArrayLike | Mapping[str, ArrayLike],
        *,
        dequantize: bool = True,
        workers: int | None = None,
        batch_size: int = 8,
        xnnpack: bool = True,
        progress: bool = False,
    ) -> Any:
        """Runs the file over samples; the outputs are the same whatever the workers and batch.

        Values outside an input's range saturate, as on a device. Where most do, that is said once.

        Args:
            x: Samples, shape (samples, ...), or for several inputs a dict of them by input
                name. An array of the input's own integer dtype holds codes; any other holds
                real values, which are quantized here.
            dequantize: Give real values, float32; False gives the file's own codes.
            workers: Interpreters side by side, each in a thread of its own with one thread
                inside. None takes one a core for sets of several hundred samples.
            batch_size: Samples an invoke. Files that cannot be resized run one by one.
            xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.
            progress: Show a progress bar.

        Returns:
            Outputs, shape (samples, ...), or a dict of them by name where the file has several.

        Raises:
            DataError: `x` does not fit the file's inputs, or holds NaN.
            ConfigurationError: `workers` or `batch_size` below 1.
        """
        if workers is not None and workers < 1:
            raise ConfigurationError(f"Expected workers from 1 up, or None. Received: {workers}.")
        if batch_size < 1:
            raise ConfigurationError(f"Expected batch_size from 1 up. Received: {batch_size}.")
        samples = fitted(self.inputs, x)
        for problem in scaling_problems(self.inputs, samples):
            if problem not in self._said:
                self._said.add(problem)
                say(problem)
        runner = Runner(
            self.content,
            self.inputs,
            self.outputs,
            samples,
            batch_size=batch_size,
            xnnpack=xnnpack,
        )
        outputs = runner.run(workers=workers, progress=progress)
        given = {
            spec.name: spec.dequantize(outputs[spec.name]) if dequantize else outputs[spec.name]
            for spec in self.outputs
        }
        return given if len(given) > 1 else next(iter(given.values()))

    def other_scaling(self, x: ArrayLike | Mapping[str, ArrayLike]) -> str | None:
        """Returns what is wrong with the scaling of samples, or None where nothing shows.

        Told by real values of which a large share lies outside the range that an integer input
        can hold, as raw pixels 0..255 do for a file trained on 0..1.

        Args:
            x: Samples as `predict` takes them.

        Raises:
            DataError: `x` does not fit the file's inputs, or holds NaN.
        """
        return next(iter(scaling_problems(self.inputs, fitted(self.inputs, x))), None)

    @functools.cached_property
    def _said(self) -> set[str]:
        return set()

    def summary(self) -> str:
        """Returns the file's size, inputs, outputs, operators and tensor dtypes as text."""
        operators: dict[str, int] = {}
        for operator in self.operators:
            operators[operator.name] = operators.get(operator.name, 0) + 1
        dtypes: dict[str, int] = {}
        for tensor in self.tensors:
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
        constants = sum(tensor.bytes for tensor in self.tensors if tensor.is_constant)
        lines = [f"{len(self.content):,} bytes, of which {constants:,} are weights and constants"]
        for label, specs in (("input", self.inputs), ("output", self.outputs)):
            for spec in specs:
                quantization = (
                    "not quantized"
                    if spec.scale is None
                    else f"scale {spec.scale:.9g}, zero point {spec.zero_point}"
                )
                lines.append(
                    f"{label} {spec.name}: {spec.dtype} {list(spec.shape)}, {quantization}"
                )
        lines.append("operators: " + ", ".join(f"{n} × {c}" for n, c in sorted(operators.items())))
        lines.append("tensors: " + ", ".join(f"{n} × {c}" for n, c in sorted(dtypes.items())))
        return "\n".join(lines)


def _specs(details: list[dict[str, Any]], names: Mapping[str, int]) -> tuple[TensorSpec, ...]:
    by_index = {index: name for name, index in names.items()}
    specs = []
    for detail in details:
        scales = detail["quantization_parameters"]["scales"]
        zero_points = detail["quantization_parameters"]["zero_points"]
        specs.append(
            TensorSpec(
                name=by_index.get(detail["index"], detail["name"]),
                index=int(detail["index"]),
                shape=tuple(int(size) for size in detail["shape"]),
                shape_signature=tuple(int(size) for size in detail["shape_signature"]),
                dtype=np.dtype(detail["dtype"]).name,
                scale=float(scales[0]) if len(scales) else None,
                zero_point=int(zero_points[0]) if len(zero_points) else None,
            )
        )
    return tuple(specs)
