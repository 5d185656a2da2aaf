"""LiteModel: the bytes of a .tflite file, what they contain, and what they predict."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdtflite.arguments import check_arguments
from kdtflite.errors import ConfigurationError, ModelFileError, UnsupportedModelError
from kdtflite.files import write_bytes
from kdtflite.lite.flatbuffer import FileContents, FileTensor, Operator, Port, read_file
from kdtflite.lite.interpreters import Runner, allocate, check_runnable, invoke, open_interpreter
from kdtflite.lite.metadata import Metadata, read_metadata
from kdtflite.lite.samples import find_scaling_problems, fit_samples
from kdtflite.lite.size_account import SizeAccount, count_bytes
from kdtflite.lite.tensors import TensorSpec
from kdtflite.lite.trial import trust, try_file
from kdtflite.progress import say
from kdtflite.text import escape_line

__all__ = ["LiteModel", "as_lite_model", "is_keras_path"]


@dataclass(frozen=True, repr=False)
class LiteModel:
    """A .tflite file in memory.

    Args:
        content: The whole file.
        tensor_names: The name of each tensor, in the order of `tensors`, where the file keeps
            shorter ones or none (see `kdtflite.pack`). They are not saved; empty takes the file's.

    Raises:
        ModelFileError: `content` is not a .tflite file, or it is damaged.
        UnsupportedModelError: `content` is not bytes.
    """

    content: bytes
    tensor_names: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.content, (bytearray, memoryview)):
            object.__setattr__(self, "content", bytes(self.content))
        if not isinstance(self.content, bytes):
            raise UnsupportedModelError(
                f"Expected the bytes of a .tflite file. Received: {type(self.content).__name__}. "
                "Read a file with LiteModel.load(path)."
            )
        _ = self.inputs, self.outputs  # reads and checks the file now, not at its first use

    def __repr__(self) -> str:
        signature = " -> ".join(
            ", ".join(f"{escape_line(spec.name)}: {spec.dtype} {spec.shape}" for spec in specs)
            for specs in (self.inputs, self.outputs)
        )
        return f"LiteModel({len(self.content):,} bytes, {signature})"

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, sandbox: bool | None = None) -> LiteModel:
        """Reads a .tflite file.

        A file may come from anywhere. Its structure is checked whole before LiteRT sees it, and
        before this process first runs it, another process does, once on zeros and once on random
        values, within 20 seconds and 2 GB: LiteRT's kernels end the process, or hang, where a
        file is wrong in a way that no check finds. That takes some milliseconds beside the runs.

        Args:
            path: The file.
            sandbox: True lets the other process run the file now, with XNNPACK and with the
                built-in kernels, so that a file on which it crashes is refused here. None does so
                before the file first runs. False trusts the file and never does.

        Raises:
            ModelFileError: The file is missing, empty, damaged or of another format, or LiteRT
                crashes on it.
            UnsupportedModelError: `path` is not a path.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise UnsupportedModelError(
                f"Expected the path of a .tflite file. Received: {type(path).__name__}."
            )
        path = Path(path)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "missing"
            raise ModelFileError(f"Expected a .tflite file at {path}; it is {kind}.")
        try:
            lite = cls(path.read_bytes())
            if sandbox:
                for xnnpack in (True, False):
                    try_file(lite.content, xnnpack=xnnpack)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
        if sandbox is False:
            trust(lite.content)
        return lite

    @check_arguments
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        option: str = "overwrite=True",
    ) -> Path:
        """Writes the file atomically and returns its path.

        Raises:
            OutputExistsError: The path exists and `overwrite` is False.
        """
        return write_bytes(path, self.content, overwrite=overwrite, option=option)

    @functools.cached_property
    def _contents(self) -> FileContents:
        contents = read_file(self.content)
        if not self.tensor_names:
            return contents
        named = zip(contents.tensors, self.tensor_names, strict=True)
        return replace(contents, tensors=tuple(replace(t, name=name) for t, name in named))

    @property
    def tensors(self) -> tuple[FileTensor, ...]:
        """Every tensor of every subgraph, constants included."""
        return self._contents.tensors

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Every operator of every subgraph, in execution order."""
        return self._contents.operators

    @property
    def metadata(self) -> Metadata | None:
        """Labels, normalization, description and more; None without metadata.

        Damaged metadata is None too: one sentence says so, and `metadata_problem` keeps it.
        """
        metadata, problem = self._metadata
        if problem is not None and problem not in self._reported:
            self._reported.add(problem)
            say(problem)
        return metadata

    @property
    def metadata_problem(self) -> str | None:
        """What is wrong with the metadata, in one sentence; None if nothing is."""
        return self._metadata[1]

    @functools.cached_property
    def _metadata(self) -> tuple[Metadata | None, str | None]:
        try:
            return read_metadata(self.content), None
        except ModelFileError as error:
            return None, str(error)

    @functools.cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The file's inputs, in its own order, which need not be the Keras model's."""
        return tuple(_make_spec(port, self.tensors) for port in self._contents.inputs)

    @functools.cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The file's outputs, in its own order."""
        return tuple(_make_spec(port, self.tensors) for port in self._contents.outputs)

    def interpreter(
        self, *, threads: int = 1, xnnpack: bool = True, keep_tensors: bool = False
    ) -> Any:
        """Returns a new LiteRT interpreter with its tensors allocated.

        Args:
            threads: Threads inside one invoke.
            xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.
            keep_tensors: Keep the values of every tensor for `get_tensor`, not only of the outputs.

        Raises:
            ModelFileError: LiteRT or the delegate refuses the file.
        """
        interpreter = open_interpreter(
            self.content, threads=threads, xnnpack=xnnpack, keep_tensors=keep_tensors
        )
        return allocate(interpreter, xnnpack=xnnpack)

    def run_on_zeros(self, *, xnnpack: bool = True) -> Any:
        """Returns an interpreter after one invoke on zeros.

        Only then does every tensor have its shape and memory: after a reshape by computed sizes
        (a Dense layer on sequences) both are known at run time only. Zeros, because whatever
        lies in fresh memory may be no valid token id.

        Args:
            xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.

        Raises:
            ModelFileError: LiteRT, the delegate or a kernel refuses the file.
        """
        check_runnable((*self.inputs, *self.outputs))
        interpreter = self.interpreter(xnnpack=xnnpack)
        invoke(
            interpreter, [(spec.index, np.zeros(spec.shape, spec.dtype)) for spec in self.inputs]
        )
        return interpreter

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
        """Runs the file over samples; `workers` and `batch_size` do not change the outputs.

        Values outside an input's range saturate, as on a device. If many do, a sentence says so
        once.

        Args:
            x: Samples, shape (samples, ...), or a dict of them by input name for several
                inputs. An array of the input's own integer dtype holds codes; any other holds
                real values, which are quantized here.
            dequantize: Return real values, float32; False returns the file's own codes.
            workers: Interpreters side by side, each in its own thread with one thread inside.
                None takes one per core for sets of several hundred samples.
            batch_size: Samples per invoke. Files that cannot be resized run one by one.
            xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.
            progress: Show a progress bar.

        Returns:
            Outputs, shape (samples, ...), or a dict of them by name if the file has several.

        Raises:
            DataError: `x` does not fit the file's inputs, or contains NaN.
            ConfigurationError: `workers` or `batch_size` is below 1.
        """
        if workers is not None and workers < 1:
            raise ConfigurationError(f"Expected workers from 1 up, or None. Received: {workers}.")
        if batch_size < 1:
            raise ConfigurationError(f"Expected batch_size from 1 up. Received: {batch_size}.")
        samples = fit_samples(self.inputs, x)
        for problem in find_scaling_problems(self.inputs, samples):
            if problem not in self._reported:
                self._reported.add(problem)
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
        results = {
            spec.name: spec.dequantize(outputs[spec.name]) if dequantize else outputs[spec.name]
            for spec in self.outputs
        }
        return results if len(results) > 1 else next(iter(results.values()))

    def predict_tensor(
        self,
        x: ArrayLike | Mapping[str, ArrayLike],
        index: int,
        *,
        workers: int | None = None,
    ) -> NDArray[Any]:
        """Runs the file over samples one by one and returns the values of an inner tensor.

        Args:
            x: Samples as `predict` takes them.
            index: Index of the tensor in the main subgraph.
            workers: Interpreters side by side; None takes one per core for several hundred samples.

        Returns:
            Real values, shape (samples, ...), the tensor's shape but for its first dimension.

        Raises:
            DataError: `x` does not fit the file's inputs, or contains NaN.
        """
        tensor = self.tensors[index]
        spec = _make_spec(Port(index, tensor.name, tensor.shape), self.tensors)
        runner = Runner(
            self.content,
            self.inputs,
            (spec,),
            fit_samples(self.inputs, x),
            batch_size=1,
            xnnpack=True,
            keep_tensors=True,
        )
        return spec.dequantize(runner.run(workers=workers, progress=False)[spec.name])

    def check_scaling(self, x: ArrayLike | Mapping[str, ArrayLike]) -> str | None:
        """Returns what is wrong with the scaling of samples, or None if it looks right.

        The sign is a large share of real values outside the range of an integer input, such as
        raw pixels 0..255 for a file trained on 0..1.

        Args:
            x: Samples as `predict` takes them.

        Raises:
            DataError: `x` does not fit the file's inputs, or contains NaN.
        """
        return next(iter(find_scaling_problems(self.inputs, fit_samples(self.inputs, x))), None)

    @functools.cached_property
    def _reported(self) -> set[str]:
        return set()

    def size_account(self) -> SizeAccount:
        """Returns what the file's bytes are for: weights, scales, names, ..."""
        return count_bytes(self.content, self.tensors, self.operators)

    def summary(self) -> str:
        """Returns the file's size, inputs, outputs, operators and tensor dtypes as text."""
        operators = Counter(operator.name for operator in self.operators)
        dtypes = Counter(tensor.dtype for tensor in self.tensors)
        constants = sum(tensor.bytes for tensor in self.tensors if tensor.is_constant)
        lines = [f"{len(self.content):,} bytes, of which {constants:,} are weights and constants"]
        for label, specs in (("input", self.inputs), ("output", self.outputs)):
            for spec in specs:
                quantization = (
                    "not quantized"
                    if spec.scale is None
                    else f"scale {spec.scale:.9g}, zero point {spec.zero_point}"
                )
                name = escape_line(spec.name)
                lines.append(f"{label} {name}: {spec.dtype} {list(spec.shape)}, {quantization}")
        counts = ", ".join(f"{escape_line(n)} × {c}" for n, c in sorted(operators.items()))
        lines.append(f"operators: {counts}")
        lines.append("tensors: " + ", ".join(f"{n} × {c}" for n, c in sorted(dtypes.items())))
        return "\n".join(lines)


# Scales of other dtypes say what a float tensor was quantized from, not what its values are.
_QUANTIZED = frozenset({"int8", "uint8", "int16", "uint16", "int32"})


def _make_spec(port: Port, tensors: tuple[FileTensor, ...]) -> TensorSpec:
    tensor = tensors[port.index]  # those of the main subgraph come first
    scales = tensor.scales if tensor.dtype in _QUANTIZED else ()
    if scales and not scales[0] > 0:
        raise ModelFileError(
            f"The .tflite file is damaged: its input or output {port.name!r} has the scale "
            f"{scales[0]:g}. Copy it again or convert the model again."
        )
    return TensorSpec(
        name=port.name,
        index=port.index,
        shape=tensor.shape,
        shape_signature=port.shape_signature,
        dtype=tensor.dtype,
        scale=scales[0] if scales else None,
        zero_point=next(iter(tensor.zero_points), 0) if scales else None,
    )


_KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def is_keras_path(path: str | os.PathLike[str]) -> bool:
    """Whether a path is, by its name or content, a Keras model rather than a .tflite file."""
    path = Path(os.fsdecode(path))
    return path.suffix.lower() in _KERAS_SUFFIXES or (path / "saved_model.pb").exists()


def as_lite_model(lite: Any) -> LiteModel:
    """Returns a LiteModel as it is; reads one from bytes or a path.

    Args:
        lite: A LiteModel, the bytes of a .tflite file, or its path.

    Raises:
        ModelFileError: There is no sound .tflite file.
        UnsupportedModelError: Something else, such as a Keras model that is not converted yet.
    """
    if isinstance(lite, LiteModel):
        return lite
    if isinstance(lite, (bytes, bytearray, memoryview)):
        return LiteModel(bytes(lite))
    received = type(lite).__name__
    if isinstance(lite, (str, os.PathLike)):
        path = Path(os.fsdecode(lite))
        if not is_keras_path(path):
            return LiteModel.load(path)
        received = f"the Keras model {path}"
    raise UnsupportedModelError(
        "Expected a .tflite file: a LiteModel, its bytes or its path. "
        f"Received: {received}. Convert a Keras model first: kdtflite.convert(model, data)."
    )
