"""An ONNX file as the teacher."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from kdtflite.distillation.teachers.base import Shape, check_fits
from kdtflite.distillation.teachers.ending import said_or_seen
from kdtflite.distillation.teachers.file_inputs import by_name, chosen_output
from kdtflite.distillation.teachers.numpy_teacher import NumpyTeacher
from kdtflite.distillation.teachers.onnx_graph import external_files, onnx_ending, read_onnx
from kdtflite.errors import ConfigurationError, ModelFileError, choose, one_line
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
    run several times a batch.

    Args:
        path: The file; weights stored in files beside it are found by onnxruntime.
        outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or "auto"
            to read it off the last operator.
        output: Which output teaches, where the file has several.
        input_layout: "channels_first" to transpose inputs, "same" not to, or "auto" to compare
            shapes.
        preprocessing: Turns the student's inputs into the file's, with TensorFlow operations,
            before any transposition; for several inputs into a dict by name.
        providers: onnxruntime's execution providers, best first; by default CUDA where
            onnxruntime has it, and the CPU.

    Raises:
        ModelFileError: No ONNX file, a damaged one, or one that onnxruntime does not run.
        ConfigurationError: onnxruntime is not installed, the file does not show what it gives, or
            an option is none of the valid ones.
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
    ) -> None:
        self.path = Path(path)
        self._layout = choose(input_layout, _LAYOUTS, what="input_layout")
        self._session = _session(self.path, providers)
        graph = read_onnx(self.path)
        given = {spec.name: spec for spec in self._session.get_outputs()}
        name = self.path.stem
        self._output = chosen_output(output, list(given), name=name)
        spec = given[self._output]
        if not spec.type.startswith("tensor("):
            raise ConfigurationError(
                f"Expected an output of the teacher {name!r} that is a tensor. Received: "
                f"{self._output!r}, {spec.type}. Pass output= to name another, one of: "
                f"{', '.join(given)}; scikit-learn's are tensors with zipmap=False."
            )
        shape = _shape(spec)
        seen = onnx_ending(graph, self._output, len(shape))
        super().__init__(
            name=name,
            outputs=said_or_seen(outputs, seen, name=name),
            preprocessing=preprocessing,
            # An exporter may leave the shape out; it is then learnt from zeros.
            output_shape=None if len(shape) < 2 or shape[-1] is None else (None, *shape[1:]),
        )
        self._files = [self.path, *external_files(graph, self.path)]
        self._specs = {spec.name: spec for spec in self._session.get_inputs()}
        self._order: list[str] = []
        self._axes: dict[str, list[int] | None] = {}

    def predict(self, inputs: Any) -> Any:
        """Returns the file's outputs for a dict of arrays by input name."""
        feeds = {name: _converted(name, inputs[name], self._specs[name]) for name in self._specs}
        fixed = next((_shape(spec)[0] for spec in self._specs.values() if spec.shape), None)
        if fixed is None:
            return self._run(feeds)
        count = len(next(iter(feeds.values())))
        parts = [
            self._run({name: _part(feed, start, fixed) for name, feed in feeds.items()})
            for start in range(0, count, fixed)
        ]
        return np.concatenate(parts)[:count]

    def fingerprint(self) -> str:  # noqa: D102
        text = "\n".join([self.outputs, self._output, *map(sha256, self._files)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _run(self, feeds: dict[str, NDArray[Any]]) -> Any:
        return self._session.run([self._output], feeds)[0]

    def _inputs(self, x: Any) -> dict[str, Any]:
        given = {}
        for name, value in by_name(x, list(self._specs), self._order).items():
            tensor = tf.convert_to_tensor(value)
            # As `check_inputs` found: a batch from a generator need not know its own shape.
            axes = self._axes[name] if name in self._axes else self._moved(name, tensor.shape)
            given[name] = tensor if axes is None else tf.transpose(tensor, axes)
        return given

    def _checked_specs(self, specs: Any, student: Any) -> dict[str, Any]:
        self._order = [] if self.preprocessing is not None else list(student.input_names)
        given, wanted = {}, []
        for name, spec in by_name(specs, list(self._specs), self._order).items():
            axes = self._axes[name] = self._moved(name, spec.shape)
            shape = spec.shape if axes is None else [spec.shape[axis] for axis in axes]
            given[name] = tf.TensorSpec(shape, spec.dtype)
            takes = self._specs[name]
            wanted.append(tf.TensorSpec(_shape(takes) if takes.shape else shape))
        check_fits(list(given.values()), wanted, preprocessed=self.preprocessing is not None)
        return given

    def _moved(self, name: str, shape: tf.TensorShape) -> list[int] | None:
        """Returns the order of axes that an input of the student's `shape` is transposed to."""
        if self._layout == "same" or shape.rank is None or shape.rank < 3:
            return None
        axes = [0, shape.rank - 1, *range(1, shape.rank - 1)]
        if self._layout == "channels_first":
            return axes
        wanted = tf.TensorShape(_shape(self._specs[name]))
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


def _session(path: Path, providers: Sequence[str] | None) -> Any:
    if not path.is_file():
        raise ModelFileError(f"Expected an ONNX file at {path}; there is none.")
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigurationError(
            'An ONNX teacher needs onnxruntime. Install it: pip install "kdtflite[onnx]".'
        ) from error
    available = onnxruntime.get_available_providers()
    if providers is None:
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    for provider in providers:
        choose(provider, available, what="execution provider of onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: its warnings are about its own optimizations
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime has a class an error, none of them public
        raise ModelFileError(
            f"onnxruntime does not take {path}: {one_line(error)[:300]}. Export the model again."
        ) from error


def _shape(spec: Any) -> Shape:
    """Returns a shape with None for the sizes that have a name or are left out."""
    return tuple(size if isinstance(size, int) and size > 0 else None for size in spec.shape or ())


def _converted(name: str, array: NDArray[Any], spec: Any) -> NDArray[Any]:
    dtype = _DTYPES.get(spec.type, array.dtype)
    if array.dtype == dtype:
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ConfigurationError(
            f"The teacher's input {name} takes {spec.type}. Received: {array.dtype}. Pass "
            "preprocessing= to say how to scale and round."
        )
    return array.astype(dtype)


def _part(feed: NDArray[Any], start: int, size: int) -> NDArray[Any]:
    part = feed[start : start + size]
    return np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
