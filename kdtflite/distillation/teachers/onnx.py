"""An ONNX file as a teacher."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kdtflite.distillation.teachers.base import Shape, check_inputs_fit
from kdtflite.distillation.teachers.file_inputs import choose_output, name_inputs
from kdtflite.distillation.teachers.graph_outputs import choose_outputs
from kdtflite.distillation.teachers.numpy_teacher import NumpyTeacher
from kdtflite.distillation.teachers.onnx_graph import (
    check_onnx_sizes,
    external_files,
    read_onnx,
    read_onnx_outputs,
)
from kdtflite.errors import ConfigurationError, ModelFileError, choose, to_line
from kdtflite.files import sha256

__all__ = ["OnnxTeacher"]

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_LAYOUTS = ("auto", "same", "channels_first")


class OnnxTeacher(NumpyTeacher):
    """An ONNX file, run by onnxruntime (`pip install "kdtflite[onnx]"`).

    Images of the student, (batch, height, width, channels), are transposed for a file that takes
    (batch, channels, height, width), as those from PyTorch do. A file with a fixed batch size is
    run several times per batch.

    Args:
        path: The file; onnxruntime finds weights in files beside it.
        outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or "auto"
            to infer it from the last operator.
        output: The output that teaches, if the file has several.
        input_layout: "channels_first" to transpose inputs, "same" not to, or "auto" to decide by
            their shapes.
        preprocessing: Turns the student's inputs into the file's, with TensorFlow operations,
            before any transposition; for several inputs into a dict by name.
        providers: onnxruntime's execution providers, best first; by default CUDA if
            onnxruntime has it, and the CPU.
        unsafe: Also run a file that takes weights from elsewhere, has operators that run code
            which it does not hold, or declares constants far larger than itself.

    Raises:
        ModelFileError: The file is damaged, not an ONNX file, or not safe, or onnxruntime does
            not run it.
        ConfigurationError: onnxruntime is not installed, the file does not show its kind of
            outputs, or an option is not valid.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        outputs: str = "auto",
        output: str | None = None,
        input_layout: str = "auto",
        preprocessing: Callable[[Any], Any] | None = None,
        providers: Sequence[str] | None = None,
        unsafe: bool = False,
    ) -> None:
        self.path = Path(path)
        self._layout = choose(input_layout, _LAYOUTS, what="input_layout")
        runtime = _import_onnxruntime(self.path)
        graph = read_onnx(self.path)
        self._files = [self.path, *external_files(graph, self.path, unsafe=unsafe)]
        if not unsafe:
            check_onnx_sizes(graph, self.path, self._files)
        self._session = _session(runtime, self.path, providers)
        given = {spec.name: spec for spec in self._session.get_outputs()}
        name = self.path.stem
        self._output = choose_output(output, list(given), name=name)
        spec = given[self._output]
        if not spec.type.startswith("tensor("):
            raise ConfigurationError(
                f"Expected an output of the teacher {name!r} that is a tensor. Received: "
                f"{self._output!r}, {spec.type}. Pass output= to name another, one of: "
                f"{', '.join(given)}; scikit-learn's are tensors with zipmap=False."
            )
        shape = _read_shape(spec)
        seen = read_onnx_outputs(graph, self._output, len(shape))
        super().__init__(
            name=name,
            outputs=choose_outputs(outputs, seen, name=name),
            preprocessing=preprocessing,
            # An exporter may leave the shape out; it is then learned from zeros.
            output_shape=None if len(shape) < 2 or shape[-1] is None else (None, *shape[1:]),
        )
        self._specs = {spec.name: spec for spec in self._session.get_inputs()}
        self._order: list[str] = []
        self._axes: dict[str, list[int] | None] = {}

    def predict(self, inputs: Any) -> Any:
        """Returns the file's outputs for a dict of arrays by input name."""
        feeds = {name: _convert(name, inputs[name], self._specs[name]) for name in self._specs}
        fixed = next((_read_shape(spec)[0] for spec in self._specs.values() if spec.shape), None)
        if fixed is None:
            return self._run(feeds)
        count = len(next(iter(feeds.values())))
        parts = [
            self._run({name: _slice(feed, start, fixed) for name, feed in feeds.items()})
            for start in range(0, count, fixed)
        ]
        return np.concatenate(parts)[:count]

    def fingerprint(self) -> str:  # noqa: D102
        text = "\n".join([self.outputs, self._output, *map(sha256, self._files)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _run(self, feeds: dict[str, NDArray[Any]]) -> Any:
        return self._session.run([self._output], feeds)[0]

    def _to_inputs(self, x: Any) -> dict[str, Any]:
        given = {}
        for name, value in name_inputs(x, list(self._specs), self._order).items():
            tensor = tf.convert_to_tensor(value)
            # As `check_inputs` found: the shape of a generator's batch may be unknown.
            axes = self._axes[name] if name in self._axes else self._find_axes(name, tensor.shape)
            given[name] = tensor if axes is None else tf.transpose(tensor, axes)
        return given

    def _check_specs(self, specs: Any, student: Any) -> dict[str, Any]:
        self._order = [] if self.preprocessing is not None else list(student.input_names)
        given, wanted = {}, []
        for name, spec in name_inputs(specs, list(self._specs), self._order).items():
            axes = self._axes[name] = self._find_axes(name, spec.shape)
            shape = spec.shape if axes is None else [spec.shape[axis] for axis in axes]
            given[name] = tf.TensorSpec(shape, spec.dtype)
            takes = self._specs[name]
            wanted.append(tf.TensorSpec(_read_shape(takes) if takes.shape else shape))
        check_inputs_fit(list(given.values()), wanted, preprocessed=self.preprocessing is not None)
        return given

    def _find_axes(self, name: str, shape: tf.TensorShape) -> list[int] | None:
        """Returns the order to which an input of the student's `shape` is transposed, or None."""
        if self._layout == "same" or shape.rank is None or shape.rank < 3:
            return None
        axes = [0, shape.rank - 1, *range(1, shape.rank - 1)]
        if self._layout == "channels_first":
            return axes
        wanted = tf.TensorShape(_read_shape(self._specs[name]))
        moved = [shape[axis] for axis in axes]
        if not wanted[1:].is_compatible_with(moved[1:]):
            return None
        if wanted[1:].is_compatible_with(shape[1:]):
            raise ConfigurationError(
                f"The teacher's input {name} takes {tuple(wanted)}, which the student's "
                f"{tuple(shape)} fits as it is and with the channels first. Pass "
                'input_layout="same" or input_layout="channels_first".'
            )
        return axes


def _import_onnxruntime(path: Path) -> Any:
    if not path.is_file():
        raise ModelFileError(f"Expected an ONNX file. Received: {path}, which does not exist.")
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError(
            'An ONNX teacher needs onnxruntime. Install it: pip install "kdtflite[onnx]".'
        ) from error
    return onnxruntime


def _session(onnxruntime: Any, path: Path, providers: Sequence[str] | None) -> Any:
    available = onnxruntime.get_available_providers()
    if providers is None:
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    for provider in providers:
        choose(provider, available, what="execution provider of onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about its own optimizations
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's error classes are not public
        raise ModelFileError(
            f"onnxruntime does not take {path}: {to_line(error)[:300]}. Export the model again."
        ) from error


def _read_shape(spec: Any) -> Shape:
    """Returns a shape with None for sizes that have a name or are missing."""
    return tuple(size if isinstance(size, int) and size > 0 else None for size in spec.shape or ())


def _convert(name: str, array: NDArray[Any], spec: Any) -> NDArray[Any]:
    dtype = _DTYPES.get(spec.type, array.dtype)
    if array.dtype == dtype:
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ConfigurationError(
            f"The teacher's input {name} takes {spec.type}. Received: {array.dtype}. Pass "
            "preprocessing= to say how to scale and round."
        )
    return array.astype(dtype)


def _slice(feed: NDArray[Any], start: int, size: int) -> NDArray[Any]:
    part = feed[start : start + size]
    return np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
