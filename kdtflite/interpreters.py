"""LiteRT interpreters: opened, and run side by side over many samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdtflite.errors import ModelFileError, one_line
from kdtflite.progress import track

if TYPE_CHECKING:
    from kdtflite.litemodel import TensorSpec

__all__ = ["Runner", "allocated", "open_interpreter"]

Array = NDArray[Any]

# Interpreters for "big sets" only: starting a second one costs more than a few dozen invokes.
_SAMPLES_WORTH_A_WORKER = 256
# Samples a chunk: bounds the memory for quantized copies, and is the step of the progress bar.
_CHUNK = 64


def open_interpreter(
    content: bytes, *, threads: int = 1, xnnpack: bool = True, keep_tensors: bool = False
) -> Any:
    """Returns a LiteRT interpreter of a .tflite file, its tensors not allocated yet.

    Args:
        content: The file.
        threads: Threads inside one invoke.
        xnnpack: Use LiteRT's default delegate; False runs the built-in kernels.
        keep_tensors: Keep every tensor's values after an invoke, which otherwise lose their
            memory to later ones. The delegate then takes the operators one by one, with the
            same results, rather than many at once.

    Raises:
        ModelFileError: LiteRT does not take the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        return Interpreter(
            model_content=content,
            num_threads=threads,
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=keep_tensors,
        )
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(
            f"LiteRT does not take this file: {one_line(error)}. It was written by another "
            "program or is damaged; convert the model again."
        ) from error


def allocated(interpreter: Any, *, xnnpack: bool) -> Any:
    """Returns the interpreter with its tensors allocated.

    Raises:
        ModelFileError: LiteRT or the delegate refuses the file.
    """
    try:
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(
            f"LiteRT cannot run this file with {'XNNPACK' if xnnpack else 'built-in kernels'}: "
            f"{one_line(error)}."
        ) from error
    return interpreter


class Runner:
    """Runs a file over one set of samples: an interpreter a thread, outputs in one place.

    Args:
        content: The .tflite file.
        inputs: Its inputs.
        outputs: Its outputs.
        samples: Values by input name, shape (samples, ...), as many for each.
        batch_size: Samples an invoke, where the file can be resized.
        xnnpack: Use LiteRT's default delegate.
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
    ) -> None:
        self.content = content
        self.inputs = inputs
        self.specs = outputs
        self.samples = samples
        self.xnnpack = xnnpack
        self.count = len(next(iter(samples.values())))
        self._idle: list[Any] = []
        fixed = inputs[0].shape[0] if inputs[0].shape else 1
        self.batch_size = self._agreed_batch(batch_size, fixed)
        self._chunk = _CHUNK - _CHUNK % self.batch_size or self.batch_size  # of whole batches
        self.outputs = {
            spec.name: np.empty((self.count, *spec.shape[1:]), spec.dtype) for spec in outputs
        }

    def run(self, *, workers: int | None, progress: bool) -> dict[str, Array]:
        """Returns the outputs of all samples by name, in the file's dtypes.

        Args:
            workers: Interpreters side by side; None takes one a core for several hundred samples.
            progress: Show a progress bar.
        """
        if workers is None:
            workers = min(os.cpu_count() or 1, max(1, self.count // _SAMPLES_WORTH_A_WORKER))
        starts = range(0, self.count, self._chunk)
        with ThreadPoolExecutor(workers) as pool:
            # One worker works in this thread: Ctrl-C then stops it at once.
            done: Iterator[None] = (map if workers == 1 else pool.map)(self._run_chunk, starts)
            for _ in track(done, "Predicting", total=len(starts), quiet=not progress):
                pass
        return self.outputs

    def _agreed_batch(self, wanted: int, fixed: int) -> int:
        """Returns `wanted` if the file, resized, gives what it gives one by one, else its own."""
        wanted = min(wanted, self.count)
        if wanted in (fixed, 0, 1) or self.count < 2:
            return fixed
        # A batch folded into another axis (a hard-coded reshape) shows only where samples differ:
        # those compared lie all over the set.
        rows = np.linspace(0, self.count - 1, wanted).astype(int)
        try:
            resized = self._resized(wanted)
            batch = self._invoke(resized, rows, wanted)
        except (ValueError, RuntimeError, ModelFileError):
            return fixed
        single = self._resized(fixed)
        for start in range(0, wanted, fixed):
            alone = self._invoke(single, rows[start : start + fixed], fixed)
            for spec in self.specs:
                part = batch[spec.name]
                if len(part) != wanted or not np.array_equal(
                    part[start : start + fixed], alone[spec.name][: len(part) - start]
                ):
                    return fixed
        self._idle.append(resized)
        return wanted

    def _resized(self, batch: int) -> Any:
        interpreter = open_interpreter(self.content, xnnpack=self.xnnpack)
        for spec in self.inputs:
            if spec.shape and spec.shape[0] != batch:
                interpreter.resize_tensor_input(spec.index, [batch, *spec.shape[1:]])
        return allocated(interpreter, xnnpack=self.xnnpack)

    def _invoke(self, interpreter: Any, rows: Array, batch: int) -> dict[str, Array]:
        for spec in self.inputs:
            value = spec.quantize(self.samples[spec.name][rows])
            interpreter.set_tensor(spec.index, _padded(value, batch))
        _invoke(interpreter)
        return {spec.name: interpreter.get_tensor(spec.index) for spec in self.specs}

    def _run_chunk(self, start: int) -> None:
        try:
            # list.pop is atomic: each thread takes an idle interpreter or makes its own.
            interpreter = self._idle.pop()
        except IndexError:
            interpreter = self._resized(self.batch_size)
        batch = self.batch_size
        stop = min(start + self._chunk, self.count)
        inputs = [
            (spec.index, spec.quantize(self.samples[spec.name][start:stop])) for spec in self.inputs
        ]
        outputs = [(spec.index, self.outputs[spec.name]) for spec in self.specs]
        for first in range(0, stop - start, batch):
            for index, value in inputs:
                interpreter.set_tensor(index, _padded(value[first : first + batch], batch))
            _invoke(interpreter)
            here = slice(start + first, min(start + first + batch, stop))
            for index, target in outputs:
                target[here] = interpreter.get_tensor(index)[: here.stop - here.start]
        self._idle.append(interpreter)


def _invoke(interpreter: Any) -> None:
    try:
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise ModelFileError(f"LiteRT cannot run this file: {one_line(error)}.") from error


def _padded(value: Array, batch: int) -> Array:
    """Returns `value` with its last sample repeated up to `batch` samples."""
    if len(value) == batch:
        return value
    return np.concatenate([value, np.repeat(value[-1:], batch - len(value), axis=0)])
