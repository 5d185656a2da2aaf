"""LiteRT interpreters: opening them, and running several side by side over many samples."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.errors import DataError, ModelFileError, UnsupportedModelError, to_line
from kdtflite.lite.tensors import TensorSpec
from kdtflite.lite.trial import try_file
from kdtflite.progress import track

__all__ = ["Runner", "allocate", "check_runnable", "invoke", "open_interpreter"]

Array = NDArray[Any]

# Starting another interpreter costs more than a few dozen invokes, so small sets get one.
_SAMPLES_PER_WORKER = 256
# Batches and interpreters side by side gain speed for small files; for huge ones they cost memory.
_MAX_BATCH_MEMORY = 1 << 29
_MAX_MEMORY = 1 << 32
# Samples per chunk: bounds the memory for quantized copies, and is the step of the progress bar.
_CHUNK = 64


# What LiteRT's Python layer raises for files and values that it does not take.
_REFUSALS = (ValueError, RuntimeError, TypeError, IndexError, OverflowError, MemoryError)


def open_interpreter(
    content: bytes,
    *,
    threads: int = 1,
    xnnpack: bool = True,
    keep_tensors: bool = False,
    resize: Sequence[tuple[int, Sequence[int]]] = (),
) -> Any:
    """Returns a LiteRT interpreter for a .tflite file; its tensors are not allocated yet.

    Another process has run the file first, as LiteRT crashes on some.

    Args:
        content: The file.
        threads: Threads inside one invoke.
        xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.
        keep_tensors: Keep every tensor's values after an invoke; otherwise later tensors reuse
            their memory. The delegate then runs the operators one by one instead of many at
            once, with the same results.
        resize: Index and new shape of each input to resize.

    Raises:
        ModelFileError: LiteRT does not accept the file, or crashes on it.
    """
    try_file(content, xnnpack=xnnpack, keep_tensors=keep_tensors, resize=resize)
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
            interpreter = Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=keep_tensors,
            )
        for index, shape in resize:
            interpreter.resize_tensor_input(index, shape)
    except _REFUSALS as error:
        raise ModelFileError(
            f"LiteRT does not accept this file: {to_line(error)}. It was written by another "
            "program or is damaged; convert the model again."
        ) from error
    return interpreter


def allocate(interpreter: Any, *, xnnpack: bool) -> Any:
    """Allocates an interpreter's tensors and returns it.

    Raises:
        ModelFileError: LiteRT or the delegate refuses the file.
    """
    try:
        interpreter.allocate_tensors()
    except _REFUSALS as error:
        raise ModelFileError(
            f"LiteRT cannot run this file with {'XNNPACK' if xnnpack else 'built-in kernels'}: "
            f"{to_line(error)}."
        ) from error
    return interpreter


def invoke(interpreter: Any, values: Iterable[tuple[int, Array]] = ()) -> None:
    """Runs the file once.

    Args:
        interpreter: An interpreter with its tensors allocated.
        values: Index and value of each input to set before.

    Raises:
        ModelFileError: A kernel or the delegate refuses it, or a value does not fit its input.
    """
    try:
        for index, value in values:
            interpreter.set_tensor(index, value)
        interpreter.invoke()
    except _REFUSALS as error:
        raise ModelFileError(f"LiteRT cannot run this file: {to_line(error)}.") from error


class Runner:
    """Runs a file over one set of samples, with one interpreter per thread.

    Args:
        content: The .tflite file.
        inputs: Its inputs.
        outputs: Its outputs.
        samples: Values by input name, shape (samples, ...), the same number for each.
        batch_size: Samples per invoke, if the file can be resized.
        xnnpack: Use LiteRT's default delegate.
        keep_tensors: Keep the values of every tensor: an output may be any tensor of the file.

    Raises:
        DataError: There is no memory for the outputs of so many samples.
        UnsupportedModelError: An input or output is empty or does not hold numbers.
    """

    def __init__(
        self,
        content: bytes,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        samples: dict[str, Array],
        *,
        batch_size: int,
        xnnpack: bool,
        keep_tensors: bool = False,
    ) -> None:
        check_runnable((*inputs, *outputs))
        self.content = content
        self.inputs = inputs
        self.specs = outputs
        self.samples = samples
        self.xnnpack = xnnpack
        self.keep_tensors = keep_tensors
        self.count = len(next(iter(samples.values())))
        self._idle: list[Any] = []
        fixed = inputs[0].shape[0] if inputs[0].shape else 1
        self.batch_size = self._choose_batch(batch_size, fixed)
        self._chunk = _CHUNK - _CHUNK % self.batch_size or self.batch_size  # of whole batches
        try:
            self.outputs = {
                spec.name: np.empty((self.count, *spec.shape[1:]), spec.dtype) for spec in outputs
            }
        except (MemoryError, ValueError) as error:
            raise DataError(
                f"There is no memory for the outputs of {self.count:,} samples ({to_line(error)}). "
                "Pass fewer samples at a time."
            ) from error

    def run(self, *, workers: int | None, progress: bool) -> dict[str, Array]:
        """Returns the outputs for all samples by name, in the file's dtypes.

        Args:
            workers: Interpreters side by side; None takes one per core for several hundred samples.
            progress: Show a progress bar.
        """
        if workers is None:
            workers = min(
                os.cpu_count() or 1,
                max(1, self.count // _SAMPLES_PER_WORKER),
                max(1, _MAX_MEMORY // max(1, self._measure(self.batch_size))),
            )
        starts = range(0, self.count, self._chunk)
        with ThreadPoolExecutor(workers) as pool:
            # A single worker runs in this thread, so that Ctrl-C stops it at once.
            done: Iterator[None] = (map if workers == 1 else pool.map)(self._run_chunk, starts)
            for _ in track(done, "Predicting", total=len(starts), quiet=not progress):
                pass
        return self.outputs

    def _choose_batch(self, wanted: int, fixed: int) -> int:
        """Returns `wanted` if it does not change the outputs, else the file's own batch size."""
        wanted = min(wanted, self.count)
        if wanted in (fixed, 0, 1) or self.count < 2:
            return fixed
        # A batch folded into another axis (a hard-coded reshape) shows only where samples differ,
        # so the compared ones are spread over the whole set.
        rows = np.linspace(0, self.count - 1, wanted).astype(int)
        try:
            if self._measure(wanted) > _MAX_BATCH_MEMORY:
                return fixed
            resized = self._open_resized(wanted)
            batch = self._run_batch(resized, rows, wanted)
        except (ValueError, RuntimeError, ModelFileError):
            return fixed
        single = self._open_resized(fixed)
        for start in range(0, wanted, fixed):
            alone = self._run_batch(single, rows[start : start + fixed], fixed)
            for spec in self.specs:
                part = batch[spec.name]
                if len(part) != wanted or not np.array_equal(
                    part[start : start + fixed], alone[spec.name][: len(part) - start]
                ):
                    return fixed
        self._idle.append(resized)
        return wanted

    def _list_resized(self, batch: int) -> list[tuple[int, tuple[int, ...]]]:
        return [
            (spec.index, (batch, *spec.shape[1:]))
            for spec in self.inputs
            if spec.shape and spec.shape[0] != batch
        ]

    def _open_resized(self, batch: int) -> Any:
        resize = self._list_resized(batch)
        interpreter = open_interpreter(
            self.content, xnnpack=self.xnnpack, keep_tensors=self.keep_tensors, resize=resize
        )
        return allocate(interpreter, xnnpack=self.xnnpack)

    def _measure(self, batch: int) -> int:
        """Returns the bytes that one interpreter takes."""
        resize = self._list_resized(batch)
        return try_file(
            self.content, xnnpack=self.xnnpack, keep_tensors=self.keep_tensors, resize=resize
        ).memory

    def _run_batch(self, interpreter: Any, rows: Array, batch: int) -> dict[str, Array]:
        given = [
            (s.index, _pad(s.quantize(self.samples[s.name][rows]), batch)) for s in self.inputs
        ]
        invoke(interpreter, given)
        return {spec.name: _read_output(interpreter, spec) for spec in self.specs}

    def _run_chunk(self, start: int) -> None:
        try:
            # list.pop is atomic: each thread takes an idle interpreter or opens its own.
            interpreter = self._idle.pop()
        except IndexError:
            interpreter = self._open_resized(self.batch_size)
        batch = self.batch_size
        stop = min(start + self._chunk, self.count)
        inputs = [
            (spec.index, spec.quantize(self.samples[spec.name][start:stop])) for spec in self.inputs
        ]
        outputs = [(spec, self.outputs[spec.name]) for spec in self.specs]
        for first in range(0, stop - start, batch):
            invoke(interpreter, [(i, _pad(v[first : first + batch], batch)) for i, v in inputs])
            here = slice(start + first, min(start + first + batch, stop))
            for spec, target in outputs:
                part = _read_output(interpreter, spec)[: here.stop - here.start]
                if part.shape != target[here].shape:
                    raise ModelFileError(
                        f"The output {spec.name} of this file has the shape {spec.shape} in the "
                        f"file, but {part.shape} for {here.stop - here.start} samples. Its sizes "
                        "depend on the values, or it is damaged."
                    )
                target[here] = part
        self._idle.append(interpreter)


def check_runnable(specs: Iterable[TensorSpec]) -> None:
    """Raises for an input or output that NumPy cannot hold, or that holds nothing.

    Raises:
        UnsupportedModelError: Names the tensor.
    """
    for spec in specs:
        if spec.dtype not in _NUMBERS:
            raise UnsupportedModelError(
                f"Expected inputs and outputs of numbers. Received: {spec.name} of {spec.dtype}."
            )
        if 0 in spec.shape:
            raise UnsupportedModelError(
                "Expected inputs and outputs with at least one element. Received: "
                f"{spec.name} of shape {spec.shape}."
            )


_NUMBERS = frozenset(
    {"bool", "complex64", "complex128", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def _read_output(interpreter: Any, spec: TensorSpec) -> Array:
    try:
        value = np.asarray(interpreter.get_tensor(spec.index))
    except _REFUSALS as error:
        raise ModelFileError(
            f"LiteRT gives no output {spec.name} of this file: {to_line(error)}."
        ) from error
    # A file without a batch may give a single number.
    return value if value.ndim else value[np.newaxis]


def _pad(value: Array, batch: int) -> Array:
    """Returns `value` with its last sample repeated up to `batch` samples."""
    if len(value) == batch:
        return value
    return np.concatenate([value, np.repeat(value[-1:], batch - len(value), axis=0)])
