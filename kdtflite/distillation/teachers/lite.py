"""A .tflite file as the teacher."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from kdtflite.distillation.teachers.base import check_fits
from kdtflite.distillation.teachers.ending import ending, said_or_seen
from kdtflite.distillation.teachers.file_inputs import by_name, chosen_output
from kdtflite.distillation.teachers.numpy_teacher import NumpyTeacher
from kdtflite.litemodel import LiteModel
from kdtflite.progress import say

__all__ = ["LiteTeacher"]

_FEW_LEVELS = 256


class LiteTeacher(NumpyTeacher):
    """A .tflite (LiteRT) file, float or quantized; its outputs are dequantized.

    A quantized softmax has few levels: 256 in int8, so every probability below half a step,
    0.002, is 0, and how the teacher ranks the wrong classes, which is what it teaches, is mostly
    lost. A code of 0 is read as half a step, the most that it can mean, which keeps logits finite.

    Args:
        file: Path of the file, or a LiteModel.
        outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or "auto"
            to read it off the last operator.
        output: Which output teaches, where the file has several.
        preprocessing: Turns the student's inputs into the file's, with TensorFlow operations; for
            several inputs into a dict by name.
        workers: Interpreters side by side; None takes one a core for big batches.

    Raises:
        ModelFileError: No .tflite file, or a damaged one.
        ConfigurationError: The file does not show what it gives, or which output teaches.
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
        self._output = chosen_output(output, [spec.name for spec in self.lite.outputs], name=name)
        spec = next(spec for spec in self.lite.outputs if spec.name == self._output)
        seen, end = ending(spec.index, self._producers().get)
        kind = said_or_seen(outputs, seen, name=name)
        super().__init__(
            name=name,
            outputs=kind,
            preprocessing=preprocessing,
            output_shape=(None, *(None if size < 0 else size for size in spec.shape_signature[1:])),
        )
        self._order: list[str] = []
        # The step of the softmax itself: behind it the file may go on in float.
        scales = {
            tensor.index: tensor.scales for tensor in self.lite.tensors if not tensor.subgraph
        }
        step = max((*scales[end], *scales[spec.index]), default=0.0)
        self._step = step if kind in ("probabilities", "sigmoid") else 0.0
        if self._step >= 1 / _FEW_LEVELS:
            say(
                f"The teacher {name!r} ends in a quantized {_ENDS[kind]} of {round(1 / step)} "
                f"levels: probabilities below {step / 2:.2g} are lost, and with them most of what "
                "it knows of the other classes. A file that ends in logits teaches better."
            )

    def predict(self, inputs: Any) -> Any:
        """Returns the file's outputs, dequantized, for a dict of arrays by input name."""
        # One by one: whether a file can be resized would be tried out anew for every batch.
        given = self.lite.predict(inputs, workers=self._workers, batch_size=1)
        values = given[self._output] if isinstance(given, Mapping) else given
        return np.clip(values, self._step / 2, 1 - self._step / 2) if self._step else values

    def fingerprint(self) -> str:  # noqa: D102
        digest = hashlib.sha256(f"{self.outputs}\n{self._output}\n".encode())
        digest.update(self.lite.content)
        return digest.hexdigest()

    def _inputs(self, x: Any) -> dict[str, Any]:
        return by_name(x, [spec.name for spec in self.lite.inputs], self._order)

    def _checked_specs(self, specs: Any, student: Any) -> dict[str, Any]:
        self._order = [] if self.preprocessing is not None else list(student.input_names)
        given = self._inputs(specs)
        wanted = [
            tf.TensorSpec(
                [None, *(None if size < 0 else size for size in spec.shape_signature[1:])]
            )
            for spec in self.lite.inputs
        ]
        check_fits(list(given.values()), wanted, preprocessed=self.preprocessing is not None)
        return given

    def _producers(self) -> dict[int, tuple[str, int]]:
        return {
            made: (operator.name, operator.inputs[0] if operator.inputs else -1)
            for operator in self.lite.operators
            if operator.subgraph == 0
            for made in operator.outputs
        }


_ENDS = {"probabilities": "softmax", "sigmoid": "sigmoid"}
