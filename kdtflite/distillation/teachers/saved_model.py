"""A SavedModel folder as the teacher."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from kdtflite.distillation.outputs import to_logits
from kdtflite.distillation.step import Observed
from kdtflite.distillation.taps import TappedModel
from kdtflite.distillation.teachers.base import Teacher, check_fits, input_specs, prepared
from kdtflite.distillation.teachers.ending import ending, said_or_seen
from kdtflite.distillation.teachers.file_inputs import by_name, chosen_output
from kdtflite.errors import (
    ConfigurationError,
    ModelFileError,
    ShapeMismatchError,
    choose,
    one_line,
)
from kdtflite.files import sha256

__all__ = ["SavedModelTeacher"]

# What reaches beyond the graph: files, and Python of the process.
_DANGEROUS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless", "ReadFile", "WriteFile"})
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class SavedModelTeacher(Teacher):
    """A signature of a SavedModel, whatever wrote it; it runs in the step's own graph.

    A SavedModel of Keras 2 is better loaded as a Keras model (`as_teacher` does): only then can
    its layers be tapped.

    Args:
        folder: The SavedModel.
        signature: Which of its signatures teaches.
        outputs: "logits", "probabilities" (softmax), "sigmoid", "values" (regression), or "auto"
            to read it off the last operation.
        output: Which output of the signature teaches, where it has several.
        preprocessing: Turns the student's inputs into the signature's, with TensorFlow
            operations; for several inputs into a dict by name.
        unsafe: Run graphs that read or write files too, which they do with your rights.

    Raises:
        ModelFileError: No SavedModel, a damaged one, or one that reads or writes files.
        ConfigurationError: No such signature or output, or the graph does not show what it gives.
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
        self._loaded = _loaded(self.folder, unsafe=unsafe)
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
        self._output = chosen_output(output, sorted(given), name=self.name)
        # A file keeps no order of them.
        self._specs = dict(sorted(self._function.structured_input_signature[1].items()))
        self._order: list[str] = []
        # The structure holds specifications; the tensors themselves stand in the order of names.
        tensor = dict(zip(sorted(given), self._function.outputs, strict=True))[self._output]
        seen, _ = ending((None, tensor.name), _producer(self._function))
        self.outputs = said_or_seen(outputs, seen, name=self.name)
        shape = given[self._output].shape
        if shape.rank is None or shape.rank < 2:
            raise ConfigurationError(
                f"Expected an output of shape (batch, classes) from the signature {signature!r} of "
                f"{self.folder}. Received: {shape}. Save it with an input_signature that says the "
                "shapes."
            )
        self.output_shape = (None, *shape[1:])

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns logits, shape (batch, ..., classes), for the student's inputs `x`."""
        inputs = self._inputs(x if self.preprocessing is None else self.preprocessing(x))
        fed = {name: _cast(inputs[name], spec) for name, spec in self._specs.items()}
        return to_logits(self._function(**fed)[self._output], self.outputs)

    def observe(self, x: Any, recording: contextlib.ExitStack | None = None) -> Observed:  # noqa: D102
        return observed(self, x, recording)

    def check_inputs(self, student: Any) -> None:
        """Raises ShapeMismatchError unless the signature takes what the student takes."""
        self._order = [] if self.preprocessing is not None else list(student.input_names)
        given = self._inputs(prepared(self.preprocessing, input_specs(student)))
        wanted = list(self._specs.values())
        check_fits(list(given.values()), wanted, preprocessed=self.preprocessing is not None)
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

    def _inputs(self, x: Any) -> dict[str, Any]:
        return by_name(x, list(self._specs), self._order)


def observed(teacher: Teacher, x: Any, recording: contextlib.ExitStack | None) -> Observed:
    """Returns what a teacher that TensorFlow can differentiate gives for a batch."""
    run = TappedModel(lambda x, training: teacher(x), (), role="teacher")
    _, seen = run.observe(x, training=False, recording=recording)
    return seen if recording is not None else replace(seen, logits=tf.stop_gradient(seen.logits))


def _loaded(folder: Path, *, unsafe: bool) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    file = folder / "saved_model.pb"
    if not file.is_file():
        raise ModelFileError(
            f"Expected a SavedModel folder. Received: {folder}, without {file.name}."
        )
    try:
        graphs = [meta.graph_def for meta in SavedModel.FromString(file.read_bytes()).meta_graphs]
        nodes = [node for graph in graphs for node in graph.node]
        nodes += [n for graph in graphs for call in graph.library.function for n in call.node_def]
        # Before it is loaded: loading runs parts of it.
        if not unsafe and (found := _DANGEROUS.intersection(node.op for node in nodes)):
            raise ModelFileError(
                f"{folder} uses {', '.join(sorted(found))}, which reach files or Python with your "
                "rights. Pass unsafe=True if you trust it."
            )
        return tf.saved_model.load(str(folder))
    except (DecodeError, OSError, ValueError, KeyError, tf.errors.OpError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"{folder} could not be loaded: {one_line(error)[:300]}. Save or copy the model again."
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


def _producer(function: Any) -> Callable[[tuple[str | None, str]], Any]:
    """Returns a function from a tensor, as (library function or None, name), to what makes it."""
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
