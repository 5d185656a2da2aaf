"""A SavedModel folder as a teacher."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from kdtflite.distillation.outputs import to_logits
from kdtflite.distillation.step import Observed
from kdtflite.distillation.teachers.base import (
    Teacher,
    check_inputs_fit,
    get_input_specs,
    observe_function,
    preprocess_specs,
)
from kdtflite.distillation.teachers.file_inputs import choose_output, name_inputs
from kdtflite.distillation.teachers.graph_outputs import choose_outputs, trace_outputs
from kdtflite.errors import (
    ConfigurationError,
    ModelFileError,
    ShapeMismatchError,
    choose,
    to_line,
)
from kdtflite.files import sha256
from kdtflite.models.trust.saved_models import check_saved_model

__all__ = ["SavedModelTeacher"]

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class SavedModelTeacher(Teacher):
    """A signature of a SavedModel from any tool; it runs in the graph of the training step.

    A SavedModel of Keras 2 is better loaded as a Keras model, as `as_teacher` does: only then can
    its layers be tapped.

    Args:
        folder: The SavedModel.
        signature: The signature that teaches.
        outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or "auto"
            to infer it from the last operation.
        output: The output of the signature that teaches, if it has several.
        preprocessing: Turns the student's inputs into the signature's, with TensorFlow
            operations; for several inputs into a dict by name.
        unsafe: Also run graphs with operators that are not known to be harmless, such as those
            that read or write files. They run with your rights.

    Raises:
        ModelFileError: It is damaged, not a SavedModel, or `check_saved_model` refuses it.
        ConfigurationError: There is no such signature or output, or the graph does not show its
            kind of outputs.
    """

    differentiable = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        signature: str = "serving_default",
        outputs: str = "auto",
        output: str | None = None,
        preprocessing: Callable[[Any], Any] | None = None,
        unsafe: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self.preprocessing = preprocessing
        self._loaded = _load(self.folder, unsafe=unsafe)
        if not self._loaded.signatures:
            raise ConfigurationError(
                f"{self.folder} has no signatures. Save it with tf.saved_model.save(module, folder,"
                " signatures=module.call.get_concrete_function(...))."
            )
        self.signature = choose(
            signature, self._loaded.signatures, what=f"signature in {self.folder}"
        )
        self._function = self._loaded.signatures[self.signature]
        given = self._function.structured_outputs
        self._output = choose_output(output, sorted(given), name=self.name)
        # The file does not keep their order.
        self._specs = dict(sorted(self._function.structured_input_signature[1].items()))
        self._order: list[str] = []
        # The structure holds specifications; the tensors themselves are in the order of names.
        tensor = dict(zip(sorted(given), self._function.outputs, strict=True))[self._output]
        seen, _ = trace_outputs((None, tensor.name), _trace_producers(self._function))
        self.outputs = choose_outputs(outputs, seen, name=self.name)
        shape = given[self._output].shape
        if shape.rank is None or shape.rank < 2:
            raise ConfigurationError(
                f"Expected an output of shape (batch, classes) from the signature {signature!r} of "
                f"{self.folder}. Received: {shape}. Save it with an input_signature that gives the "
                "shapes."
            )
        self.output_shape = (None, *shape[1:])

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, ..., classes), for the student's inputs `x`."""
        inputs = self._to_inputs(x if self.preprocessing is None else self.preprocessing(x))
        fed = {name: _cast(inputs[name], spec) for name, spec in self._specs.items()}
        return to_logits(self._function(**fed)[self._output], self.outputs)

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:  # noqa: D102
        return observe_function(self, x, recording)

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless the signature takes what the student takes."""
        self._order = [] if self.preprocessing is not None else list(student.input_names)
        given = self._to_inputs(preprocess_specs(self.preprocessing, get_input_specs(student)))
        wanted = list(self._specs.values())
        check_inputs_fit(list(given.values()), wanted, preprocessed=self.preprocessing is not None)
        for spec in wanted:
            if spec.shape[:1].as_list() != [None]:
                raise ShapeMismatchError(
                    f"The signature {self.signature!r} of {self.folder} takes batches of exactly "
                    f"{spec.shape[0]}. Save it with an input_signature of shape (None, ...)."
                )

    def fingerprint(self) -> str:  # noqa: D102
        digest = hashlib.sha256(f"{self.outputs}\n{self.signature}\n{self._output}\n".encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(self.folder)} {sha256(path)}\n".encode())
        return digest.hexdigest()

    def _to_inputs(self, x: Any) -> dict[str, Any]:
        return name_inputs(x, list(self._specs), self._order)


def _load(folder: Path, *, unsafe: bool) -> Any:
    check_saved_model(folder, unsafe=unsafe)  # before it is loaded: loading runs parts of it
    try:
        return tf.saved_model.load(str(folder))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise ModelFileError(
            f"{folder} could not be loaded: {to_line(error)[:300]}. Save or copy the model again."
        ) from error


def _cast(tensor: Any, spec: tf.TensorSpec) -> tf.Tensor:
    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype == spec.dtype:
        return tensor
    if spec.dtype.is_integer and not tensor.dtype.is_integer:
        raise ConfigurationError(
            f"The teacher's input {spec.name} takes {spec.dtype.name}. Received: "
            f"{tensor.dtype.name}. Pass preprocessing= to say how to scale and round."
        )
    return tf.cast(tensor, spec.dtype)


def _trace_producers(function: Any) -> Callable[[tuple[str | None, str]], Any]:
    """Returns a function from a tensor, as (library function or None, name), to its producer."""
    graph = function.graph.as_graph_def()
    calls = {call.signature.name: call for call in graph.library.function}
    nodes: dict[str | None, dict[str, Any]] = {None: {node.name: node for node in graph.node}}
    nodes |= {name: {node.name: node for node in call.node_def} for name, call in calls.items()}

    def producer(tensor: tuple[str | None, str]) -> tuple[str, tuple[str | None, str]] | None:
        scope, name = tensor
        node = nodes[scope].get(name.split(":")[0])
        if node is None or not node.input:
            return None
        if node.op in _CALLS:
            callee = calls[node.attr["f"].func.name]
            index = int(name.rsplit(":", 1)[1]) if ":" in name else 0
            inside = callee.ret[callee.signature.output_arg[index].name]
            return "identity", (callee.signature.name, inside)
        return node.op, (scope, node.input[0])

    return producer
