"""A .tflite file as a teacher."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.distillation.teachers.base import check_inputs_fit
from kdtflite.distillation.teachers.file_inputs import choose_output, name_inputs
from kdtflite.distillation.teachers.graph_outputs import choose_outputs, trace_outputs
from kdtflite.distillation.teachers.numpy_teacher import NumpyTeacher
from kdtflite.lite.model import LiteModel
from kdtflite.progress import say

__all__ = ["LiteTeacher"]

_FEW_LEVELS = 256


class LiteTeacher(NumpyTeacher):
    """A .tflite (LiteRT) file, float or quantized; its outputs are dequantized.

    A quantized softmax has few levels: 256 in int8, so every probability below half a step, 0.002,
    is 0, and most of how the teacher ranks the wrong classes is lost. The values that go into it
    are in the file, too: "auto" reads those of a quantized softmax or sigmoid. With
    "probabilities" or "sigmoid" a code of 0 is read as half a step, the largest value it can stand
    for, which keeps logits finite.

    Args:
        file: Path of the file, or a LiteModel.
        outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or "auto"
            to infer it from the last operator. For a file that ends in a softmax or sigmoid,
            "logits" reads what goes into it.
        output: The output that teaches, if the file has several.
        preprocessing: Turns the student's inputs into the file's, with TensorFlow operations; for
            several inputs into a dict by name.
        workers: Number of parallel interpreters; None takes one per core for big batches.

    Raises:
        ModelFileError: The file is damaged, or not a .tflite file.
        ConfigurationError: The file does not show its kind of outputs, or which output teaches.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | LiteModel,
        *,
        outputs: str = "auto",
        output: str | None = None,
        preprocessing: Callable[[Any], Any] | None = None,
        workers: int | None = None,
    ) -> None:
        self.lite = file if isinstance(file, LiteModel) else LiteModel.load(file)
        name = "tflite" if isinstance(file, LiteModel) else Path(file).stem
        self._workers = workers
        self._output = choose_output(output, [spec.name for spec in self.lite.outputs], name=name)
        spec = next(spec for spec in self.lite.outputs if spec.name == self._output)
        producers = self._list_producers()
        seen, end = trace_outputs(spec.index, producers.get)
        # The step of the softmax itself: after it the file may continue in float.
        scales = {
            tensor.index: tensor.scales for tensor in self.lite.tensors if not tensor.subgraph
        }
        step = max((*scales[end], *scales[spec.index]), default=0.0)
        coarse = step >= 1 / _FEW_LEVELS
        # Which tensor teaches: the one before a final softmax or sigmoid, or None for the output.
        self._inner: int | None = None
        before = producers[end][1] if seen in _ENDS else -1
        if before >= 0 and (outputs == "logits" or (outputs == "auto" and coarse)):
            self._inner = before
        if self._inner is None:
            kind = choose_outputs(outputs, seen, name=name)
        else:
            assert seen is not None
            kind = "sigmoid" if outputs == "auto" and seen == "sigmoid" else "logits"
            levels = f"quantized {_ENDS[seen]} of {round(1 / step)} levels" if coarse else ""
            say(
                f"The teacher {name!r} ends in a {levels or _ENDS[seen]}; the logits that go into "
                "it are read instead."
            )
        shape = spec.sample_shape
        if self._inner is not None:  # a reshape may follow the softmax
            shape = self.lite.tensors[self._inner].shape[1:]
        super().__init__(
            name=name,
            outputs=kind,
            preprocessing=preprocessing,
            output_shape=(None, *shape),
        )
        self._order: list[str] = []
        read_as_is = kind in _ENDS and self._inner is None
        self._step = step if read_as_is else 0.0
        if self._step >= 1 / _FEW_LEVELS:
            say(
                f"The teacher {name!r} ends in a quantized {_ENDS[kind]} of {round(1 / step)} "
                f"levels: probabilities below {step / 2:.2g} are lost, and with them most of what "
                'it knows about the other classes. outputs="auto" reads the logits that go into it.'
            )

    def predict(self, inputs: Any) -> Any:
        """Returns the file's outputs, dequantized, for a dict of arrays by input name."""
        if self._inner is not None:
            values = self.lite.predict_tensor(inputs, self._inner, workers=self._workers)
            # The sigmoid by way of its logarithm, which does not overflow.
            return values if self.outputs == "logits" else np.exp(-np.logaddexp(0, -values))
        # One by one: otherwise each batch would try anew whether the file can be resized.
        given = self.lite.predict(inputs, workers=self._workers, batch_size=1)
        values = given[self._output] if isinstance(given, Mapping) else given
        return np.clip(values, self._step / 2, 1 - self._step / 2) if self._step else values

    def fingerprint(self) -> str:  # noqa: D102
        inner = "" if self._inner is None else f"{self._inner}\n"
        digest = hashlib.sha256(f"{self.outputs}\n{self._output}\n{inner}".encode())
        digest.update(self.lite.content)
        return digest.hexdigest()

    def _to_inputs(self, x: Any) -> dict[str, Any]:
        return name_inputs(x, [spec.name for spec in self.lite.inputs], self._order)

    def _check_specs(self, specs: Any, student: Any) -> dict[str, Any]:
        self._order = [] if self.preprocessing is not None else list(student.input_names)
        given = self._to_inputs(specs)
        wanted = [tf.TensorSpec([None, *spec.sample_shape]) for spec in self.lite.inputs]
        check_inputs_fit(list(given.values()), wanted, preprocessed=self.preprocessing is not None)
        return given

    def _list_producers(self) -> dict[int, tuple[str, int]]:
        return {
            made: (operator.name, operator.inputs[0] if operator.inputs else -1)
            for operator in self.lite.operators
            if operator.subgraph == 0
            for made in operator.outputs
        }


_ENDS = {"probabilities": "softmax", "sigmoid": "sigmoid"}
